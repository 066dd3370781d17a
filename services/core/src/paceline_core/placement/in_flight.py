"""The in-flight ledger: what was placed and no load report knows yet, so that a burst does not herd."""

from dataclasses import dataclass
from typing import Final

from paceline_core.placement.view import Floats

_REQUESTS, _PREFILL, _OUTPUT = range(3)
COLUMNS: Final = ("pending_requests", "pending_prefill_tokens", "pending_output_tokens")


@dataclass(slots=True)
class _Entry:
    row: int
    prefill_tokens: float
    output_tokens: float
    seen: bool = False


class InFlightLedger:
    """Entries by attempt key; sums by engine in three rows of the caller's matrix, float64[3, E].

    An entry lives from the decision until a report that covers it, or its end: what no report ever covers goes with
    the attempt, so the ledger is bounded by the live attempts.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._by_row: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, sums: Floats, key: int, row: int, prefill_tokens: float, output_tokens: float) -> None:
        """A decision was sent."""
        self.drop(sums, key)
        self._entries[key] = _Entry(row, prefill_tokens, output_tokens)
        self._by_row.setdefault(row, set()).add(key)
        sums[_REQUESTS, row] += 1.0
        sums[_PREFILL, row] += prefill_tokens
        sums[_OUTPUT, row] += output_tokens

    def seen(self, key: int) -> None:
        """The engine answered for it: its next report covers it."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.seen = True

    def reported(self, sums: Floats, row: int) -> None:
        """A report of the engine came: what it had answered for is in there."""
        keys = self._by_row.get(row)
        if keys:
            for key in [key for key in keys if self._entries[key].seen]:
                self.drop(sums, key)

    def drop(self, sums: Floats, key: int) -> None:
        """The attempt is over, or covered; nothing happens when it is not there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        keys = self._by_row[entry.row]
        keys.discard(key)
        if not keys:
            del self._by_row[entry.row]
            sums[:, entry.row] = 0.0  # no rounding error outlives its entries
            return
        sums[_REQUESTS, entry.row] -= 1.0
        sums[_PREFILL, entry.row] -= entry.prefill_tokens
        sums[_OUTPUT, entry.row] -= entry.output_tokens

    def clear(self, sums: Floats, row: int) -> None:
        """The engine is gone, and what was on its way to it."""
        for key in list(self._by_row.get(row, ())):
            self.drop(sums, key)
