"""The SLO tracker: exact token timelines of live requests, and attainment of those that ended of late.

Rows are the caller's (one slot per live request, reused after its end), kept as struct-of-arrays, so that a step costs
a handful of array operations whatever its batch.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.slo import Slo, SloClass

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

WINDOW_S: Final = 60
"""Attainment is told over this window, in buckets of one second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request stood here. Times are milliseconds since arrival; NaN when there was no such token."""

    slo_class: SloClass
    attained: bool
    tokens: int
    tokens_in_time: int
    first_token_ms: float
    last_token_ms: float
    longest_gap_ms: float


@dataclass(frozen=True, slots=True)
class Attainment:
    """Requests of one class that ended in the window, and those among them that attained."""

    ended: int
    attained: int


class SloTracker:
    """Token timelines by slot. A token is in time when it is out by `Slo.token_due_ms` of its index."""

    def __init__(self, slots: int = 64) -> None:
        self._slo_class = np.zeros(slots, dtype=np.int8)
        self._arrival_ms = np.zeros(slots)
        self._first_due_ms = np.zeros(slots)
        self._tbt_ms = np.zeros(slots)
        self._tokens = np.zeros(slots, dtype=np.int64)
        self._in_time = np.zeros(slots, dtype=np.int64)
        self._first_ms = np.full(slots, np.nan)
        self._last_ms = np.full(slots, np.nan)
        self._gap_ms = np.zeros(slots)
        self._ended = np.zeros((len(SloClass) + 1, WINDOW_S), dtype=np.int64)
        self._attained = np.zeros_like(self._ended)
        self._second = 0

    def grow(self, slots: int) -> None:
        """Make room for `slots` slots."""
        extra = slots - len(self._tokens)
        if extra <= 0:
            return
        for name in (
            "_slo_class",
            "_arrival_ms",
            "_first_due_ms",
            "_tbt_ms",
            "_tokens",
            "_in_time",
            "_gap_ms",
        ):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros(extra, dtype=column.dtype)]))
        for name in ("_first_ms", "_last_ms"):
            setattr(self, name, np.concatenate([getattr(self, name), np.full(extra, np.nan)]))

    def begin(self, slot: int, slo: Slo, arrival_ms: float) -> None:
        """A request takes `slot`; it arrived at the router at `arrival_ms`."""
        self._slo_class[slot] = slo.slo_class
        self._arrival_ms[slot] = arrival_ms
        self._first_due_ms[slot] = slo.token_due_ms(0)
        self._tbt_ms[slot] = slo.tbt_ms if slo.slo_class is SloClass.LATENCY else 0.0
        self._tokens[slot] = self._in_time[slot] = 0
        self._first_ms[slot] = self._last_ms[slot] = np.nan
        self._gap_ms[slot] = 0.0

    def tokens(self, slots: IntArray, first_indices: IntArray, counts: IntArray, now_ms: float) -> IntArray:
        """Tokens `first_indices` .. `first_indices + counts - 1` of `slots` (distinct) came out at `now_ms`.

        Returns the slots whose first token here this was.
        """
        elapsed = now_ms - self._arrival_ms[slots]
        first_due, tbt = self._first_due_ms[slots], self._tbt_ms[slots]
        paced = tbt > 0
        pace = np.where(paced, tbt, 1.0)
        with np.errstate(invalid="ignore"):
            index = np.ceil((elapsed - first_due) / pace)
            # Rounding of the division may be one off: settle it with the formula that defines the due time.
            index += first_due + index * pace < elapsed
            index -= first_due + (index - 1) * pace >= elapsed
        from_index = np.where(paced, index, np.where(elapsed <= first_due, -1.0, np.inf))
        in_time = np.clip(first_indices + counts - np.maximum(first_indices, from_index), 0, counts)
        self._in_time[slots] += in_time.astype(np.int64)
        self._tokens[slots] += counts
        last = self._last_ms[slots]
        started = np.isnan(last)
        self._gap_ms[slots] = np.maximum(self._gap_ms[slots], np.where(started, 0.0, elapsed - last))
        self._last_ms[slots] = elapsed
        fresh = slots[started]
        if len(fresh):
            self._first_ms[fresh] = elapsed[started]
        return np.asarray(fresh)

    def end(self, slot: int, now_ms: float, *, completed: bool, counted: bool = True) -> Outcome:
        """The request of `slot` ended. `completed`: with a whole answer; only such ones attain.

        `counted=False` leaves it out of the window: it goes on elsewhere, or its client gave it up.
        """
        slo_class = SloClass(int(self._slo_class[slot]))
        tokens, in_time = int(self._tokens[slot]), int(self._in_time[slot])
        last_ms = float(self._last_ms[slot])
        if slo_class in (SloClass.DEADLINE, SloClass.TASK):  # all or nothing
            late = not completed or (tokens > 0 and last_ms > self._first_due_ms[slot])
            late = late or (tokens == 0 and now_ms - self._arrival_ms[slot] > self._first_due_ms[slot])
            in_time = 0 if late else tokens
            attained = not late
        else:
            attained = completed and in_time == tokens
        if counted:
            self._roll(now_ms)
            bucket = self._second % WINDOW_S
            self._ended[slo_class, bucket] += 1
            self._attained[slo_class, bucket] += attained
        return Outcome(
            slo_class,
            attained,
            tokens,
            in_time,
            float(self._first_ms[slot]),
            last_ms,
            float(self._gap_ms[slot]),
        )

    def attainment(self, now_ms: float) -> dict[SloClass, Attainment]:
        """By class, over the last minute; classes without an end are left out."""
        self._roll(now_ms)
        ended, attained = self._ended.sum(axis=1), self._attained.sum(axis=1)
        return {c: Attainment(int(ended[c]), int(attained[c])) for c in SloClass if ended[c]}

    def _roll(self, now_ms: float) -> None:
        second = int(now_ms // 1000)
        for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._ended[:, passed % WINDOW_S] = 0
            self._attained[:, passed % WINDOW_S] = 0
        self._second = max(self._second, second)
