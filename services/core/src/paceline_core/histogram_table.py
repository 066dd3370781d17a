"""The counts behind the length histograms: one row per key in one array, decayed, bounded."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import EDGES, OPEN_EDGE, FloatArray, K, bin_of

EVENTS, CENSORED, EXPOSURE = range(3)
"""Rows of the counts of a key: ended in the bin; cut in the bin; share of the bin that the cut ones had seen."""

_UPPER = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float64)
_LOWER = np.concatenate([[0], EDGES[:-1]]).astype(np.float64)

Key = tuple[str, str]


class StateError(ValueError):
    """Saved state that cannot be used: damaged, or of another version or other bins."""


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """A copy of a table."""

    keys: tuple[Key, ...]
    counts: FloatArray
    """float64[N, 3, K]."""
    scores: FloatArray
    """float64[N, 3]."""

    def data(self) -> bytes:
        """Counts and scores, little-endian float64."""
        return self.counts.astype("<f8").tobytes() + self.scores.astype("<f8").tobytes()


class HistogramTable:
    """Counts of up to `capacity` keys, in rows of one array; the key observed longest ago leaves first."""

    def __init__(
        self, capacity: int, half_life: float, coverage_half_life: float, coverage_min_outcomes: float
    ) -> None:
        """Half-lives in outcomes of a key."""
        if capacity < 1:
            raise ValueError("a table needs room for one key")
        self._capacity = capacity
        self._keep = 0.5 ** (1 / half_life)
        self._keep_coverage = 0.5 ** (1 / coverage_half_life)
        self._coverage_min = coverage_min_outcomes
        self._rows: OrderedDict[Key, int] = OrderedDict()
        self._counts: FloatArray = np.zeros((min(capacity, 16), 3, K))
        # Decayed outcomes within P90, decayed outcomes, outcomes.
        self._scores: FloatArray = np.zeros((min(capacity, 16), 3))

    def __len__(self) -> int:
        return len(self._rows)

    def observed(self, key: Key) -> int:
        """Outcomes of a key since it came in."""
        row = self._rows.get(key)
        return 0 if row is None else int(self._scores[row, 2])

    def coverage(self, key: Key) -> float:
        """Decayed share of outcomes within P90; 0: not known, known ones are at least 0.001."""
        row = self._rows.get(key)
        if row is None or self._scores[row, 1] < self._coverage_min:
            return 0.0
        return max(1e-3, float(self._scores[row, 0] / self._scores[row, 1]))

    def counts(self, keys: Sequence[Key]) -> FloatArray:
        """float64[N, 3, K]; zeros for keys that are not known."""
        rows = np.array([self._rows.get(key, -1) for key in keys], dtype=np.int64)
        return np.asarray(np.where((rows >= 0)[:, None, None], self._counts[rows], 0.0))

    def learn(self, key: Key, length: int, censored: bool, within: bool | None) -> None:
        """Add an outcome; `within` P90 is None when that is not known."""
        row = self._row(key)
        counts, scores = self._counts[row], self._scores[row]
        counts *= self._keep
        k = int(bin_of(length))
        if censored:
            counts[CENSORED, k] += 1.0
            counts[EXPOSURE, k] += min(1.0, (length - _LOWER[k]) / (_UPPER[k] - _LOWER[k]))
        else:
            counts[EVENTS, k] += 1.0
        if within is not None:
            scores[:2] *= self._keep_coverage
            scores[:2] += (float(within), 1.0)
        scores[2] += 1

    def snapshot(self) -> TableSnapshot:
        """All keys as they are now, the one observed longest ago first."""
        rows = np.fromiter(self._rows.values(), dtype=np.int64, count=len(self._rows))
        return TableSnapshot(tuple(self._rows), self._counts[rows], self._scores[rows])

    def load(self, keys: list[list[str]], state: bytes, at: int) -> int:
        """Fill the empty table from `state[at:]`; returns where its data ends."""
        n = len(keys)
        sizes = (n * 3 * K, n * 3)
        if len(state) < at + 8 * sum(sizes):
            raise StateError("the saved state is too short")
        counts: NDArray[np.float64] = np.frombuffer(state, "<f8", sizes[0], at).reshape(n, 3, K)
        scores: NDArray[np.float64] = np.frombuffer(state, "<f8", sizes[1], at + 8 * sizes[0]).reshape(n, 3)
        if not (np.isfinite(counts).all() and np.isfinite(scores).all()) or (counts < 0).any():
            raise StateError("the saved state holds numbers that no outcomes give")
        for i in range(max(0, n - self._capacity), n):
            row = self._row((keys[i][0], keys[i][1]))
            self._counts[row] = counts[i]
            self._scores[row] = scores[i]
        return at + 8 * sum(sizes)

    def _row(self, key: Key) -> int:
        """The row of a key, now the most recent one; a new key gets an empty one."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row
        if len(self._rows) == self._capacity:
            _, row = self._rows.popitem(last=False)
            self._counts[row] = 0.0
            self._scores[row] = 0.0
        else:
            row = len(self._rows)
            if row == len(self._counts):
                more = min(self._capacity, 2 * row) - row
                self._counts = np.concatenate([self._counts, np.zeros((more, 3, K))])
                self._scores = np.concatenate([self._scores, np.zeros((more, 3))])
        self._rows[key] = row
        return row
