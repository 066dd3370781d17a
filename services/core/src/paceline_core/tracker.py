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


# Columns of a timeline: one gather and one scatter per step move a whole row.
_ARRIVAL, _FIRST_DUE, _TBT, _TOKENS, _IN_TIME, _FIRST, _LAST, _GAP = range(8)
_NEVER_MS: Final = 1e18
"""Due time of best effort: finite, so that arithmetic with it stays defined."""


class SloTracker:
    """Token timelines by slot. A token is in time when it is out by `Slo.token_due_ms` of its index."""

    def __init__(self, slots: int = 64) -> None:
        self._slo_class = np.zeros(slots, dtype=np.int8)
        self._timeline = np.zeros((slots, 8))
        self._ended = np.zeros((len(SloClass) + 1, WINDOW_S), dtype=np.int64)
        self._attained = np.zeros_like(self._ended)
        self._second = 0

    def grow(self, slots: int) -> None:
        """Make room for `slots` slots."""
        extra = slots - len(self._slo_class)
        if extra > 0:
            self._slo_class = np.concatenate([self._slo_class, np.zeros(extra, dtype=np.int8)])
            self._timeline = np.concatenate([self._timeline, np.zeros((extra, 8))])

    def begin(self, slot: int, slo: Slo, arrival_ms: float) -> None:
        """A request takes `slot`; it arrived at the router at `arrival_ms`."""
        self._slo_class[slot] = slo.slo_class
        tbt_ms = slo.tbt_ms if slo.slo_class is SloClass.LATENCY else 0.0
        first_due_ms = min(slo.token_due_ms(0), _NEVER_MS)
        self._timeline[slot] = (arrival_ms, first_due_ms, tbt_ms, 0.0, 0.0, np.nan, np.nan, 0.0)

    def take_over(self, slot: int, other: "SloTracker", other_slot: int) -> None:
        """The request of `slot` has come from `other`: what it wrote there counts here."""
        self._slo_class[slot] = other._slo_class[other_slot]
        self._timeline[slot] = other._timeline[other_slot]

    def tokens(self, slots: IntArray, first_indices: IntArray, counts: IntArray, now_ms: float) -> IntArray:
        """Tokens `first_indices` .. `first_indices + counts - 1` of `slots` (distinct) came out at `now_ms`.

        Returns the slots whose first token here this was.
        """
        lines = self._timeline[slots]
        elapsed = now_ms - lines[:, _ARRIVAL]
        if counts.max() == 1:
            lines[:, _IN_TIME] += elapsed <= lines[:, _FIRST_DUE] + first_indices * lines[:, _TBT]
        else:
            lines[:, _IN_TIME] += _count_in_time(
                elapsed, lines[:, _FIRST_DUE], lines[:, _TBT], first_indices, counts
            )
        lines[:, _TOKENS] += counts
        last = lines[:, _LAST]
        started = np.isnan(last)
        lines[:, _GAP] = np.fmax(lines[:, _GAP], elapsed - last)
        lines[:, _LAST] = elapsed
        if started.any():
            lines[started, _FIRST] = elapsed[started]
            fresh = slots[started]
        else:
            fresh = _NONE
        self._timeline[slots] = lines
        return fresh

    def tokens_run(self, slots: IntArray, first_indices: IntArray, times_ms: FloatArray) -> IntArray:
        """One token of each of `slots` [M] (distinct) at each of `times_ms` [k >= 1], ascending, from `first_indices`
        [M] on: `tokens`, for k steps of an unchanged run set at once.

        Returns the slots whose first token here this was.
        """
        lines = self._timeline[slots]
        arrival, last = lines[:, _ARRIVAL], lines[:, _LAST]
        first_due, tbt = lines[:, _FIRST_DUE], lines[:, _TBT]
        paced = tbt > 0
        in_time = np.searchsorted(times_ms, arrival + first_due, side="right")
        if paced.any():
            rows = np.flatnonzero(paced)
            base = first_due[rows] + first_indices[rows] * tbt[rows] + arrival[rows]
            due = base[:, None] + np.arange(len(times_ms)) * tbt[rows, None]
            in_time[rows] = (times_ms <= due).sum(axis=1)
        gap = np.fmax(lines[:, _GAP], times_ms[0] - arrival - last)
        if len(times_ms) > 1:
            gap = np.maximum(gap, np.diff(times_ms).max())
        started = np.isnan(last)
        lines[:, _IN_TIME] += in_time
        lines[:, _TOKENS] += len(times_ms)
        lines[:, _GAP] = gap
        lines[:, _LAST] = times_ms[-1] - arrival
        lines[started, _FIRST] = times_ms[0] - arrival[started]
        self._timeline[slots] = lines
        return slots[started]

    def late_tokens(self, slots: IntArray) -> IntArray:
        """[M] Tokens of `slots` so far that were late by their own timeline."""
        return np.asarray(self._timeline[slots, _TOKENS] - self._timeline[slots, _IN_TIME], dtype=np.int64)

    def end(self, slot: int, now_ms: float, *, completed: bool, counted: bool = True) -> Outcome:
        """The request of `slot` ended. `completed`: with a whole answer; only such ones attain.

        `counted=False` leaves it out of the window: it goes on elsewhere, or its client gave it up.
        """
        slo_class = SloClass(int(self._slo_class[slot]))
        line: list[float] = self._timeline[slot].tolist()
        tokens, in_time, last_ms, due_ms = (
            int(line[_TOKENS]),
            int(line[_IN_TIME]),
            line[_LAST],
            line[_FIRST_DUE],
        )
        if slo_class in (SloClass.DEADLINE, SloClass.TASK):  # all or nothing
            ended_ms = last_ms if tokens else now_ms - line[_ARRIVAL]
            attained = completed and ended_ms <= due_ms
            in_time = tokens if attained else 0
        else:
            attained = completed and in_time == tokens
        if counted:
            self._roll(now_ms)
            bucket = self._second % WINDOW_S
            self._ended[slo_class, bucket] += 1
            self._attained[slo_class, bucket] += attained
        return Outcome(slo_class, attained, tokens, in_time, line[_FIRST], last_ms, line[_GAP])

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


_NONE: Final = np.empty(0, dtype=np.int64)


def _count_in_time(
    elapsed: FloatArray, first_due: FloatArray, tbt: FloatArray, first_indices: IntArray, counts: IntArray
) -> FloatArray:
    """[M] How many of the tokens that came out together at `elapsed` are in time: those from some index on."""
    paced = tbt > 0
    pace = np.where(paced, tbt, 1.0)
    index = np.ceil((elapsed - first_due) / pace)
    # Rounding of the division may be one off: settle it with the formula that defines the due time.
    index += first_due + index * pace < elapsed
    index -= first_due + (index - 1) * pace >= elapsed
    from_index = np.where(paced, index, np.where(elapsed <= first_due, -1.0, np.inf))
    return np.asarray(np.clip(first_indices + counts - np.maximum(first_indices, from_index), 0, counts))
