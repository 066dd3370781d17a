"""A monotone map on CDF values: where outcomes fall in their forecasts (PIT) is learned, and undone.

With u = F(length) the probability integral transform of an outcome, G(u) the learned share of outcomes at or below u,
G(F(x)) is the recalibrated CDF (Kuleshov et al., ICML 2018). On top, the levels of P50, P90 and P95 are steered by
their realised coverage (adaptive conformal inference: Gibbs and Candes, NeurIPS 2021): level x_l of G is called l, and
x_l rises by `gain` * l with each miss and falls by `gain` * (1 - l) with each hit.
"""

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import FloatArray

LEVELS = np.array([0.5, 0.9, 0.95])
"""Quantile levels whose coverage is watched and steered."""

PIT_EDGES = np.concatenate([[0.02], np.arange(1, 18) * 0.05, [0.9, 0.925, 0.95, 0.97, 0.985, 1.0]])
"""Upper edges of the bins of u: fine where the quantiles are asked for."""
PIT_BINS = len(PIT_EDGES)
IDENTITY = np.diff(PIT_EDGES, prepend=0.0)
"""Shares of the bins when nothing is to be corrected."""

_BORDERS = np.concatenate([[0.0], PIT_EDGES])
_KNOTS = np.concatenate([[0.0], LEVELS, [1.0]])
_LOWEST, _HIGHEST = np.array([0.25, 0.8, 0.86]), np.array([0.75, 0.975, 0.995])
"""Between what each steered level stays, and how far the highest stays above the one below."""
_APART = 0.005


def pit_map(shares: FloatArray, steer: FloatArray) -> FloatArray:
    """Values of the map at the borders 0, PIT_EDGES: float64[N, PIT_BINS + 1], from shares of the bins and [N, 3]
    corrections of the levels."""
    n = len(shares)
    table = np.zeros((n, PIT_BINS + 1))
    np.cumsum(shares, axis=1, out=table[:, 1:])
    table /= table[:, -1:]
    knots = np.zeros((n, 5))
    knots[:, 1:4] = np.clip(LEVELS + steer, _LOWEST, _HIGHEST)
    knots[:, 3] = np.maximum(knots[:, 3], knots[:, 2] + _APART)
    knots[:, 4] = 1.0
    if n == 1:  # the same in one step
        return np.asarray(np.interp(table[0], knots[0], _KNOTS))[None]
    return _between(table, knots)


def _between(values: FloatArray, knots: FloatArray) -> FloatArray:
    """Piecewise linear from knots [N, 5] to 0, the levels, 1."""
    part = (values[:, :, None] >= knots[:, None, 1:4]).sum(axis=2)
    rows = np.arange(len(values))[:, None]
    low, high = knots[rows, part], knots[rows, part + 1]
    share = (values - low) / (high - low)
    return np.asarray(_KNOTS[part] + share * (_KNOTS[part + 1] - _KNOTS[part]))


def recalibrated(cdf: FloatArray, table: FloatArray) -> FloatArray:
    """The map of each row, applied to CDF values [N, J]."""
    if len(cdf) == 1:  # the same in one step
        return np.asarray(np.interp(cdf[0], _BORDERS, table[0]))[None]
    at = np.interp(cdf, _BORDERS, np.arange(PIT_BINS + 1.0))
    bin_ = np.minimum(at.astype(np.int64), PIT_BINS - 1)
    rows = np.arange(len(cdf))[:, None]
    below = table[rows, bin_]
    return np.asarray(below + (at - bin_) * (table[rows, bin_ + 1] - below))


def pit_shares(u: FloatArray, censored: NDArray[np.bool_], table: FloatArray) -> FloatArray:
    """What outcomes say about the shares of the bins, float64[N, PIT_BINS]: all in the bin of u [N]; for a censored
    one, somewhere above u, as the map [N, PIT_BINS + 1] has it."""
    n = len(u)
    rows = np.arange(n)
    shares = np.zeros((n, PIT_BINS))
    bin_ = np.minimum(np.searchsorted(PIT_EDGES, u, side="left"), PIT_BINS - 1)
    shares[rows, bin_] = 1.0
    if censored.any():
        above = np.clip((PIT_EDGES - u[:, None]) / IDENTITY, 0.0, 1.0) * np.diff(table, axis=1)
        mass = above.sum(axis=1)
        told = censored & (mass > 1e-12)
        shares[told] = above[told] / mass[told, None]
    return shares
