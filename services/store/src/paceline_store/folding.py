"""A batch of rows, reduced to what must be written: per key the last state, per request few checkpoints."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from paceline_store.checkpoints import joined
from paceline_store.rows import CheckpointRow, RequestChange, RequestRow, Row

CHANGED = ("prompt_ids", "prompt_tokens", "finished", "finished_unix_ms")
"""Fields of a request that a change may set, beside its state."""

KeyedRows = dict[type[Row], dict[object, Row]]


@dataclass(slots=True)
class Folded:
    """What one transaction writes."""

    requests: list[RequestRow] = field(default_factory=list)
    changes: list[RequestChange] = field(default_factory=list)
    checkpoints: list[CheckpointRow] = field(default_factory=list)
    others: KeyedRows = field(default_factory=dict)
    """By row type, by key."""

    def finished_ids(self) -> list[str]:
        """Requests that end in this batch."""
        rows: Iterable[RequestRow | RequestChange] = (*self.requests, *self.changes)
        return [row.request_id for row in rows if row.finished_unix_ms is not None]


def fold(rows: Iterable[Row]) -> Folded:
    """Fold rows given in the order in which they were put."""
    requests: dict[str, RequestRow | RequestChange] = {}
    checkpoints: dict[str, list[CheckpointRow]] = {}
    folded = Folded()
    for row in rows:
        match row:
            case RequestRow():
                requests[row.request_id] = row
            case RequestChange():
                before = requests.get(row.request_id)
                requests[row.request_id] = row if before is None else _changed(before, row)
            case CheckpointRow():
                checkpoints.setdefault(row.request_id, []).append(row)
            case _:
                folded.others.setdefault(type(row), {})[row.key] = row
    for request in requests.values():
        if isinstance(request, RequestRow):
            folded.requests.append(request)
        else:
            folded.changes.append(request)
    for group in checkpoints.values():
        folded.checkpoints.extend(joined(group) if len(group) > 1 else group)
    return folded


def _changed(before: RequestRow | RequestChange, change: RequestChange) -> RequestRow | RequestChange:
    new = {name: value for name in CHANGED if (value := getattr(change, name)) is not None}
    return replace(before, state=change.state, **new)
