"""Output lengths as distributions over fixed bins (algorithms: a length is a distribution, not a number).

K = 48 log-spaced bins with integer-distinct upper edges from 1 to 32768; bin k covers lengths in
(EDGES[k-1], EDGES[k]], the last one is open and read as ending at OPEN_EDGE. Inside a bin mass is spread evenly.
Everything is stored as a CDF at the upper edges, so that conditioning on what is already out is a gather and a scale.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

K: Final = 48
MAX_LENGTH: Final = 32_768
OPEN_EDGE: Final = 65_536.0
TAIL_MIX: Final = 0.01
"""Share of a heavy tail mixed into every estimate, so that P(L > g) is never 0."""

FloatArray = NDArray[np.float64]


def _edges() -> NDArray[np.int64]:
    """48 distinct integers from 1 to 32768, as evenly spaced in log as integers allow."""
    edges = [1]
    for k in range(1, K):
        ratio = (MAX_LENGTH / edges[-1]) ** (1 / (K - k))
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
    edges[-1] = MAX_LENGTH
    return np.asarray(edges, dtype=np.int64)


EDGES: Final = _edges()
"""Upper edges, int64[K], ascending."""

UPPER: Final = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float64)
LOWER: Final = np.concatenate([[0.0], EDGES[:-1]]).astype(np.float64)
"""Lower (exclusive) edges of the bins, float64[K]; `UPPER` has the upper ones, with OPEN_EDGE as the last."""
MIDDLE: Final = (LOWER + 1 + UPPER) / 2
_EDGES: Final = EDGES.astype(np.float64)
_BINS: Final = np.arange(K)


def _heavy_tail() -> FloatArray:
    """Log-uniform over all bins."""
    mass = np.log(UPPER + 1) - np.log(LOWER + 1)
    return np.asarray(mass / mass.sum())


TAIL: Final = _heavy_tail()
"""Bin masses of the heavy tail, float64[K]."""


def bin_of(lengths: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Index of the bin of each length (>= 1); lengths past the last edge are in the open bin."""
    return np.minimum(np.searchsorted(EDGES, lengths, side="left"), K - 1)


def cdf_from_probabilities(probabilities: FloatArray) -> FloatArray:
    """CDFs at the upper edges, float64[N, K], from bin masses [N, K] (or [K]); the tail is mixed in.

    Raises ValueError on a wrong bin count, negative or non-finite mass, or a row without mass.
    """
    p = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))
    if p.shape[-1] != K:
        raise ValueError(f"a length estimate has {K} bins, got {p.shape[-1]}")
    if not np.isfinite(p).all() or (p < 0).any() or (p.sum(axis=-1) <= 0).any():
        raise ValueError("bin masses must be finite, not negative, and not all zero")
    p = (1 - TAIL_MIX) * p / p.sum(axis=-1, keepdims=True) + TAIL_MIX * TAIL
    cdf = np.cumsum(p, axis=-1)
    cdf[:, -1] = 1.0
    return cdf


def probabilities(cdf: FloatArray) -> FloatArray:
    """Bin masses [N, K] of CDFs [N, K]."""
    return np.diff(cdf, axis=-1, prepend=0.0)


def cdf_at(cdf: FloatArray, lengths: FloatArray) -> FloatArray:
    """P(L <= x) per row, float64[N], for CDFs [N, K] and lengths [N]."""
    x = np.clip(np.asarray(lengths, dtype=np.float64), 0.0, OPEN_EDGE)
    k = np.minimum(np.searchsorted(UPPER, x, side="left"), K - 1)
    rows = np.arange(len(cdf))
    below = np.where(k > 0, cdf[rows, np.maximum(k - 1, 0)], 0.0)
    share = (x - LOWER[k]) / (UPPER[k] - LOWER[k])
    return np.asarray(below + share * (cdf[rows, k] - below))


def quantile(cdf: FloatArray, level: float, generated: FloatArray, max_tokens: FloatArray) -> FloatArray:
    """Length at `level` given that more than `generated` tokens come, clipped at `max_tokens`; float64[N]."""
    seen = cdf_at(cdf, generated)
    target = seen + level * (1.0 - seen)
    k = np.minimum((cdf < target[:, None]).sum(axis=-1), K - 1)
    rows = np.arange(len(cdf))
    below = np.where(k > 0, cdf[rows, np.maximum(k - 1, 0)], 0.0)
    mass = np.maximum(cdf[rows, k] - below, 1e-12)
    x = LOWER[k] + (target - below) / mass * (UPPER[k] - LOWER[k])
    return np.asarray(np.minimum(np.maximum(x, np.asarray(generated) + 1), max_tokens))


def mean(cdf: FloatArray, generated: FloatArray, max_tokens: FloatArray) -> FloatArray:
    """Mean length given that more than `generated` tokens come, clipped at `max_tokens`; float64[N]."""
    g = np.asarray(generated, dtype=np.float64)[:, None]
    limit = np.maximum(np.asarray(max_tokens, dtype=np.float64)[:, None], g + 1)
    low = np.maximum(LOWER[None, :], g)
    width = UPPER[None, :] - LOWER[None, :]
    p = probabilities(cdf) * np.clip((UPPER[None, :] - low) / width, 0.0, 1.0)
    # A length is the upper end of its unit cell: uniform on (low, upper], half a token up.
    inside = np.clip((np.minimum(limit, UPPER[None, :]) - low) / np.maximum(UPPER[None, :] - low, 1e-9), 0, 1)
    middle = (low + 1 + np.minimum(limit, UPPER[None, :])) / 2
    value = inside * np.minimum(middle, limit) + (1 - inside) * limit
    mass = p.sum(axis=-1)
    safe = np.maximum(mass, 1e-12)
    return np.asarray(np.where(mass > 1e-12, (p * value).sum(axis=-1) / safe, g[:, 0] + 1))


def conditioned(probabilities: FloatArray, generated: FloatArray, max_tokens: FloatArray) -> FloatArray:
    """Bin masses [N, K] given that more than `generated` [N] tokens come; mass past `max_tokens` [N] moves onto it.

    A limit that is already passed means that the next token is the last one. Where no mass is left the tail decides.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    g = np.minimum(np.asarray(generated, dtype=np.float64), OPEN_EDGE - 1)
    mass = p.sum(axis=1, keepdims=True)
    whole = not g.any() and mass.min(initial=1.0) > 1e-12
    left = p / mass if whole else _ahead(p, g[:, None])
    last = np.minimum(_EDGES.searchsorted(np.maximum(max_tokens, g + 1)), K - 1)
    if (last < K - 1).any():
        inside = last[:, None] >= _BINS
        beyond = 1.0 - (left * inside).sum(axis=1)
        left *= inside
        left[np.arange(len(left)), last] += np.maximum(beyond, 0.0)
    return left


def _ahead(p: FloatArray, g: FloatArray) -> FloatArray:
    """Bin masses [N, K] given that more than g [N, 1] tokens come."""
    ahead = np.clip((UPPER - g) / (UPPER - LOWER), 0.0, 1.0)
    left = p * ahead
    mass = left.sum(axis=1, keepdims=True)
    left = np.where(mass > 1e-12, left, TAIL * ahead)
    return np.asarray(left / left.sum(axis=1, keepdims=True))
