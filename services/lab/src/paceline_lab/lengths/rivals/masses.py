"""Bin masses from samples and from quantiles."""

import numpy as np
from numpy.typing import NDArray

from paceline_core.histogram import posterior
from paceline_core.histogram_table import CENSORED, EVENTS, EXPOSURE
from paceline_core.lengths import LOWER, UPPER, FloatArray, K, bin_of

_LOG_UPPER = np.log(UPPER[:-1] + 0.5)
"""Log length at which a bin ends for values that are not whole numbers, float64[K - 1]; the last bin has no end."""

BoolArray = NDArray[np.bool_]


def counted(
    lengths: FloatArray, censored: BoolArray, weights: FloatArray, groups: NDArray[np.int64], n: int
) -> FloatArray:
    """Counts float64[n, 3, K] (events, censored, exposure) of n groups, as `paceline_core.histogram` keeps them.

    A cut answer was at risk for the part of its bin below the cut.
    """
    bins = bin_of(np.maximum(np.asarray(lengths), 1).astype(np.int64))
    share = np.clip((lengths - LOWER[bins]) / (UPPER[bins] - LOWER[bins]), 0.0, 1.0)
    kinds = (
        (EVENTS, np.where(censored, 0.0, weights)),
        (CENSORED, np.where(censored, weights, 0.0)),
        (EXPOSURE, np.where(censored, weights * share, 0.0)),
    )
    counts = np.zeros((n, 3, K))
    for kind, weight in kinds:
        counts[:, kind] = np.bincount(groups * K + bins, weights=weight, minlength=n * K).reshape(n, K)
    return counts


def pooled(counts: FloatArray, parents: FloatArray, concentration: float) -> FloatArray:
    """Bin masses [N, K] from counts [N, 3, K], the parents [N, K] worth `concentration` answers."""
    return posterior(counts, parents, concentration)


def from_residuals(centres: FloatArray, residuals: FloatArray, weights: FloatArray) -> FloatArray:
    """Bin masses [N, K] of exp(centre + residual): centres [N], sorted residuals [R] with weights [R]."""
    share = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    at = np.searchsorted(residuals, _LOG_UPPER[None, :] - centres[:, None], side="right")
    cdf = np.concatenate([share[at], np.ones((len(centres), 1))], axis=1)
    return np.diff(cdf, axis=1, prepend=0.0)


def from_quantiles(levels: FloatArray, logs: FloatArray, tail: float) -> FloatArray:
    """Bin masses [N, K] of a length whose log has the quantiles logs [N, Q] at levels [Q].

    Between levels the CDF is linear in the log; past the outer ones it goes on for `tail` times the distance of the
    outer pair. Quantiles that cross are put in order.
    """
    ordered = np.sort(logs, axis=1)
    first = ordered[:, :1] - tail * np.maximum(ordered[:, 1:2] - ordered[:, :1], 0.1)
    last = ordered[:, -1:] + tail * np.maximum(ordered[:, -1:] - ordered[:, -2:-1], 0.1)
    points = np.concatenate([first, ordered, last], axis=1)
    points += np.arange(points.shape[1]) * 1e-6
    heights = np.concatenate([[0.0], levels, [1.0]])
    cdf = np.stack([np.interp(_LOG_UPPER, row, heights) for row in points])
    return np.diff(np.concatenate([cdf, np.ones((len(cdf), 1))], axis=1), axis=1, prepend=0.0)


def smoothed(masses: FloatArray, share: float, prior: FloatArray) -> FloatArray:
    """The masses with `share` of a prior [K] mixed in."""
    return (1 - share) * masses + share * prior
