"""The counts behind the length histograms: one row per key in one array, decayed, bounded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline_core.key_rows import Key, KeyRows
from paceline_core.lengths import LOWER, UPPER, FloatArray, K, bin_of
from paceline_core.saved_state import StateError, Unpacker

EVENTS, CENSORED, EXPOSURE = range(3)
"""Rows of the counts of a key: ended in the bin; cut in the bin; share of the bin that the cut ones had seen."""


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """A copy of a table."""

    keys: tuple[Key, ...]
    counts: FloatArray
    """float64[N, 3, K]."""
    scores: FloatArray
    """float64[N, 3]."""


class HistogramTable:
    """Counts of up to `capacity` keys, in rows of one array; the key observed longest ago leaves first."""

    def __init__(
        self, capacity: int, half_life: float, coverage_half_life: float, coverage_min_outcomes: float
    ) -> None:
        """Half-lives in outcomes of a key."""
        self._keep = 0.5 ** (1 / half_life)
        self._keep_coverage = 0.5 ** (1 / coverage_half_life)
        self._coverage_min = coverage_min_outcomes
        self._rows = KeyRows(capacity)
        self._counts: FloatArray = np.zeros((min(capacity, 16), 3, K))
        # Decayed outcomes within P90, decayed outcomes, outcomes.
        self._scores: FloatArray = np.zeros((min(capacity, 16), 3))

    def __len__(self) -> int:
        return len(self._rows)

    def observed(self, key: Key) -> int:
        """Outcomes of a key since it came in."""
        row = self._rows.get(key)
        return 0 if row < 0 else int(self._scores[row, 2])

    def coverage(self, key: Key) -> float:
        """Decayed share of outcomes within P90; 0: not known, known ones are at least 0.001."""
        row = self._rows.get(key)
        if row < 0 or self._scores[row, 1] < self._coverage_min:
            return 0.0
        return max(1e-3, float(self._scores[row, 0] / self._scores[row, 1]))

    def counts(self, keys: Sequence[Key]) -> FloatArray:
        """float64[N, 3, K]; zeros for keys that are not known."""
        rows = np.array([self._rows.get(key) for key in keys], dtype=np.int64)
        return np.asarray(np.where((rows >= 0)[:, None, None], self._counts[rows], 0.0))

    def learn(self, key: Key, length: int, censored: bool, within: bool | None) -> None:
        """Add an outcome; `within` P90 is None when that is not known."""
        row = self._row(key)
        counts, scores = self._counts[row], self._scores[row]
        counts *= self._keep
        k = int(bin_of(length))
        if censored:
            counts[CENSORED, k] += 1.0
            counts[EXPOSURE, k] += min(1.0, (length - LOWER[k]) / (UPPER[k] - LOWER[k]))
        else:
            counts[EVENTS, k] += 1.0
        if within is not None:
            scores[:2] *= self._keep_coverage
            scores[:2] += (float(within), 1.0)
        scores[2] += 1

    def snapshot(self) -> TableSnapshot:
        """All keys as they are now, the one observed longest ago first."""
        rows = np.array(self._rows.rows(), dtype=np.int64)
        return TableSnapshot(tuple(self._rows), self._counts[rows], self._scores[rows])

    def load(self, keys: list[list[str]], state: Unpacker) -> None:
        """Fill the empty table with what comes next in a saved state. Raises StateError."""
        n = len(keys)
        counts, scores = state.array(n, 3, K), state.array(n, 3)
        if (counts < 0).any():
            raise StateError("the saved state holds numbers that no outcomes give")
        for i in range(max(0, n - self._rows.capacity), n):
            row = self._row((keys[i][0], keys[i][1]))
            self._counts[row] = counts[i]
            self._scores[row] = scores[i]

    def _row(self, key: Key) -> int:
        """The row of a key, now the most recent one; a new key gets an empty one."""
        row, new = self._rows.take(key)
        if row == len(self._counts):
            more = min(self._rows.capacity, 2 * row) - row
            self._counts = np.concatenate([self._counts, np.zeros((more, 3, K))])
            self._scores = np.concatenate([self._scores, np.zeros((more, 3))])
        if new:
            self._counts[row] = 0.0
            self._scores[row] = 0.0
        return row
