"""What is still to come of thousands of live requests, token by token: `lengths` by gathers instead of passes.

A row keeps its CDF at the bin edges and, beside it, the expected tokens past each edge, R(x) = E[(L - x)+]. Every
question about a row that has put out g tokens then reads a few cells, whatever the number of bins:

    P(L > g) = 1 - F(g),    E[min(L, m) - g | L > g] = (R(g) - R(m)) / P(L > g)

Speed: `LengthTable.remaining_mean`, `quantile` and `p_within` are meant to be timed over 256 and over 10,000 changed
rows (all three together are the refinement of a request after a token).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import LOWER, OPEN_EDGE, UPPER, FloatArray, K

Rows = NDArray[np.int64]

_LAST: Final = int(OPEN_EDGE)
_STRIDE: Final = K + 1
"""Cells of a row: the borders of the bins."""
_STRIDES: Final = (16, 16, 8, 4, 2, 1)
"""Of a search over the borders: they add up to K - 1, so that it needs no bounds."""
_BIN: Final = np.minimum(np.searchsorted(UPPER, np.arange(_LAST + 1)), K - 1)
"""Bin of each whole length from 0 to OPEN_EDGE, its share below that length, and the tokens from there to its end."""
_SHARE: Final = ((np.arange(_LAST + 1) - LOWER[_BIN]) / (UPPER - LOWER)[_BIN]).astype(np.float32)
_LEFT: Final = (UPPER[_BIN] - np.arange(_LAST + 1)).astype(np.float32)
_WIDTH: Final = UPPER - LOWER
_LEAST: Final = np.float32(1e-7)


class LengthTable:
    """Length CDFs of `rows` live requests. Lengths are whole tokens; past OPEN_EDGE they count as OPEN_EDGE."""

    def __init__(self, rows: int) -> None:
        self._past: NDArray[np.float32] = np.zeros((rows, _STRIDE), dtype=np.float32)
        self._more: NDArray[np.float32] = np.zeros((rows, _STRIDE), dtype=np.float32)
        self._beyond: NDArray[np.float32] = np.zeros(rows, dtype=np.float32)

    @property
    def cdf(self) -> NDArray[np.float32]:
        """float32[rows, K]: P(L <= upper edge of the bin); a view, to be read only."""
        return self._past[:, 1 : K + 1]

    def grow(self, rows: int) -> None:
        """Room for `rows` rows; the old ones stay."""
        more = rows - len(self._past)
        blank = np.zeros((more, _STRIDE), dtype=np.float32)
        self._past = np.concatenate([self._past, blank])
        self._more = np.concatenate([self._more, blank])
        self._beyond = np.concatenate([self._beyond, np.zeros(more, dtype=np.float32)])

    def put(self, rows: Rows, cdf: FloatArray, max_tokens: Rows) -> None:
        """New CDFs [N, K], of requests that write at most `max_tokens` [N]."""
        alive = 1.0 - np.asarray(cdf, dtype=np.float64)
        before = np.concatenate([np.ones((len(alive), 1)), alive[:, :-1]], axis=1)
        # Whole lengths: the survival function is summed over 0, 1, ..., which is its integral and half of each fall.
        inside = (before + alive) / 2 * _WIDTH + (before - alive) / 2
        self._past[rows, 0] = 0.0
        self._past[rows, 1 : K + 1] = cdf
        self._more[rows, :K] = np.cumsum(inside[:, ::-1], axis=1)[:, ::-1]
        self._more[rows, K] = 0.0
        self._beyond[rows] = self._ahead(rows, np.minimum(max_tokens, _LAST))[1]

    def p_within(self, rows: Rows, generated: Rows, more: Rows) -> FloatArray:
        """[N] P(L <= generated + more | L > generated)."""
        start = np.minimum(generated, _LAST)
        out = self._at(rows, start)
        reached = self._at(rows, np.minimum(start + more, _LAST))
        return np.asarray((reached - out) / np.maximum(1 - out, _LEAST), dtype=np.float64)

    def remaining_mean(self, rows: Rows, generated: Rows) -> FloatArray:
        """[N] Expected tokens still to come, given that one does, and none past the limit; at least 1."""
        out, ahead = self._ahead(rows, np.minimum(generated, _LAST))
        return np.asarray(
            np.maximum((ahead - self._beyond[rows]) / np.maximum(1 - out, _LEAST), 1.0), dtype=np.float64
        )

    def quantile(
        self, rows: Rows, generated: Rows, max_tokens: Rows | NDArray[np.int32], level: float
    ) -> FloatArray:
        """[N] Whole length at `level`, given that more than `generated` tokens come; clipped at `max_tokens`."""
        target = self._at(rows, np.minimum(generated, _LAST))
        target += np.float32(level) * (1 - target)
        flat = self._past.ravel()
        # The last border below the target; the last of all is 1, which none is above.
        first = rows * _STRIDE
        cell = first.copy()
        for step in _STRIDES:
            cell += step * (flat[cell + step] < target)
        below = flat[cell]
        share = (target - below) / np.maximum(flat[cell + 1] - below, _LEAST)
        bin_ = cell - first
        x = LOWER[bin_] + np.minimum(share, 1.0) * _WIDTH[bin_]
        return np.asarray(np.minimum(np.maximum(x, generated + 1), max_tokens))

    def _at(self, rows: Rows, lengths: Rows) -> NDArray[np.float32]:
        """P(L <= x)."""
        cell = rows * _STRIDE + _BIN[lengths]
        flat = self._past.ravel()
        below = flat[cell]
        return np.asarray(below + (flat[cell + 1] - below) * _SHARE[lengths])

    def _ahead(self, rows: Rows, lengths: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """P(L <= x) and E[(L - x)+]: quadratic within a bin, where the survival function is a line."""
        cell = rows * _STRIDE + _BIN[lengths]
        flat = self._past.ravel()
        below = flat[cell]
        cell += 1
        end = flat[cell]
        out = below + (end - below) * _SHARE[lengths]
        fall = (end - out) / 2
        return out, np.asarray(self._more.ravel()[cell] + _LEFT[lengths] * (1 - end + fall) + fall)
