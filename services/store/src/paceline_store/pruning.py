"""What may go from the ledger: counts and bytes of ended work, and where to cut so that what stays fits a bound."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from paceline_store.tables import checkpoints, engines, requests, tasks

ROW_BYTES = 200
"""What a row is counted with beside its long columns: keys, numbers, short texts."""


@dataclass(frozen=True, slots=True)
class LedgerSize:
    """Part of the ledger. `bytes` is what requests and their tokens hold, not what the database takes on disk."""

    requests: int
    tasks: int
    engines: int
    bytes: int

    @property
    def rows(self) -> int:
        """Requests, tasks and engines together: what `Store.prune` counts."""
        return self.requests + self.tasks + self.engines


async def ended_size(connection: AsyncConnection, before_unix_ms: int | None) -> LedgerSize:
    """Requests, tasks and engines that ended before; without a time, all that have ended."""

    def ended(column: ColumnElement[int | None]) -> ColumnElement[bool]:
        return column.is_not(None) if before_unix_ms is None else column < before_unix_ms

    kept = _sized().where(ended(requests.c.finished_unix_ms)).subquery()
    row = (await connection.execute(select(func.count(), func.coalesce(func.sum(kept.c.bytes), 0)))).one()
    counts = []
    for table, column in ((tasks, tasks.c.ended_unix_ms), (engines, engines.c.lost_unix_ms)):
        counted = select(func.count()).select_from(table).where(ended(column))
        counts.append(int((await connection.execute(counted)).scalar_one()))
    return LedgerSize(int(row[0]), counts[0], counts[1], int(row[1]))


async def ended_before_for(connection: AsyncConnection, max_bytes: int) -> int:
    """The time (Unix ms) before which work must have ended to go, so that the ended work that stays fits; 0: all fits.

    Unfinished requests always stay, and count.
    """
    unfinished = _sized().where(requests.c.finished_unix_ms.is_(None)).subquery()
    live = (await connection.execute(select(func.coalesce(func.sum(unfinished.c.bytes), 0)))).scalar_one()
    sized = _sized().where(requests.c.finished_unix_ms.is_not(None)).subquery()
    # The same instant goes or stays as one: RANGE, the default frame, sums peers together.
    total = func.sum(sized.c.bytes).over(order_by=sized.c.finished_unix_ms.desc())
    summed = select(sized.c.finished_unix_ms, total.label("total")).subquery()
    over = select(func.max(summed.c.finished_unix_ms)).where(summed.c.total + int(live) > max_bytes)
    cut = (await connection.execute(over)).scalar_one()
    return 0 if cut is None else int(cut) + 1


def _sized() -> Select[tuple[int | None, int]]:
    """Each request with when it ended and its bytes, tokens included."""
    tokens = (
        select(
            checkpoints.c.request_id,
            func.sum(
                ROW_BYTES
                + func.length(checkpoints.c.token_ids)
                + func.length(checkpoints.c.text_lengths)
                + func.length(checkpoints.c.text)
            ).label("bytes"),
        )
        .group_by(checkpoints.c.request_id)
        .subquery()
    )
    own = (
        ROW_BYTES
        + func.length(requests.c.spec)
        + func.length(requests.c.slo_json)
        + func.coalesce(func.length(requests.c.prompt_ids), 0)
        + func.coalesce(func.length(requests.c.finished), 0)
    )
    return select(
        requests.c.finished_unix_ms, (own + func.coalesce(tokens.c.bytes, 0)).label("bytes")
    ).select_from(requests.outerjoin(tokens, tokens.c.request_id == requests.c.request_id))
