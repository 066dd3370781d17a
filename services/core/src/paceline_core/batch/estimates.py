"""Length estimates of live requests as policies ask for them: what is still to come, given what is out.

The two questions that policies ask of every row at every plan, the mean and the upper bound, are answered from memory
where no token came out since: of ten thousand live requests a step changes as many as its batch.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import FloatArray
from paceline_core.survival import LengthTable, Rows

UPPER_LEVEL: Final = 0.95
"""Level of the upper bound (JITServe's artifact)."""
_MOST_TOKENS: Final = 2**31 - 1
"""Limits beyond this count as this."""


class LengthEstimates:
    """A length table, and the answers that were given last. Rows are the caller's, counts are whole tokens."""

    def __init__(self, rows: int) -> None:
        self._table = LengthTable(rows)
        self._limit: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self._mean: FloatArray = np.zeros(rows)
        self._upper: FloatArray = np.zeros(rows)
        self._mean_at: NDArray[np.int32] = np.full(rows, -1, dtype=np.int32)
        self._upper_at: NDArray[np.int32] = np.full(rows, -1, dtype=np.int32)

    @property
    def cdf(self) -> NDArray[np.float32]:
        """float32[rows, K]: P(L <= upper edge of the bin); a view, to be read only."""
        return self._table.cdf

    def grow(self, rows: int) -> None:
        """Room for `rows` rows; the old ones stay."""
        more = rows - len(self._limit)
        self._table.grow(rows)
        blank = np.full(more, -1, dtype=np.int32)
        self._limit = np.concatenate([self._limit, np.zeros(more, dtype=np.int32)])
        self._mean = np.concatenate([self._mean, np.zeros(more)])
        self._upper = np.concatenate([self._upper, np.zeros(more)])
        self._mean_at = np.concatenate([self._mean_at, blank])
        self._upper_at = np.concatenate([self._upper_at, blank])

    def put(self, rows: Rows, cdf: FloatArray, max_tokens: Rows) -> None:
        """New CDFs [N, K], of requests that write at most `max_tokens` [N]."""
        self._table.put(rows, cdf, max_tokens)
        self._limit[rows] = np.minimum(max_tokens, _MOST_TOKENS)
        self._mean_at[rows] = self._upper_at[rows] = -1

    def mean_left(self, rows: Rows, generated: Rows) -> FloatArray:
        """[N] Expected tokens still to come, given that more than `generated` [N] do; at least 1."""
        stale = self._mean_at[rows] != generated
        if stale.any():
            at, out = rows[stale], generated[stale]
            self._mean[at] = self._table.remaining_mean(at, out)
            self._mean_at[at] = out
        return self._mean[rows]

    def upper_left(self, rows: Rows, generated: Rows) -> FloatArray:
        """[N] Tokens still to come at UPPER_LEVEL, given that more than `generated` [N] do; at least 1."""
        stale = self._upper_at[rows] != generated
        if stale.any():
            at, out = rows[stale], generated[stale]
            self._upper[at] = self.quantile_left(at, out, UPPER_LEVEL)
            self._upper_at[at] = out
        return self._upper[rows]

    def quantile_left(self, rows: Rows, generated: Rows, level: float) -> FloatArray:
        """[N] Tokens still to come at `level`, given that more than `generated` [N] do; at least 1."""
        total = self._table.quantile(rows, generated, self._limit[rows], level)
        return np.asarray(np.maximum(total - generated, 1.0))

    def p_within(self, rows: Rows, generated: Rows, more: Rows) -> FloatArray:
        """[N] P(at most `more` [N] tokens come, given that at least one does); 1 where the limit ends it before."""
        ends = generated + more >= self._limit[rows]
        return np.where(ends, 1.0, self._table.p_within(rows, generated, more))
