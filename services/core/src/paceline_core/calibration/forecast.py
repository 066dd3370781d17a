"""From base masses to the answer: stretched, mixed with the histogram, recalibrated. Pure functions over a batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.calibration.evidence import Rows
from paceline_core.calibration.offset import LOG_MIDDLE, log_moments, stretched_cdf
from paceline_core.calibration.recalibration import recalibrated
from paceline_core.lengths import LOWER, OPEN_EDGE, TAIL, TAIL_MIX, UPPER, FloatArray, K

_TAIL_SHARE = TAIL_MIX * TAIL


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of N keys, each after so many tokens."""

    shipped: FloatArray
    """[N] Offset that came with the model file."""
    offset: FloatArray
    """[N] What was learned on top of it."""
    scale: FloatArray
    """[N] By how much the base's log lengths are to be spread."""
    histogram: FloatArray
    """[N, K] CDF of the lengths seen."""
    base_share: FloatArray
    """[N] Share of the base in the mixture with them."""
    table: FloatArray
    """[N, PIT_BINS + 1] The map of the CDF."""
    settled: FloatArray
    """[N] How far the offset has been found, from 0 to 1."""

    def part(self, rows: Rows) -> "Known":
        """Those of some rows."""
        return Known(
            self.shipped[rows],
            self.offset[rows],
            self.scale[rows],
            self.histogram[rows],
            self.base_share[rows],
            self.table[rows],
            self.settled[rows],
        )

    def put(self, rows: slice, known: "Known") -> None:
        """Overwrite some rows."""
        self.shipped[rows] = known.shipped
        self.offset[rows] = known.offset
        self.scale[rows] = known.scale
        self.histogram[rows] = known.histogram
        self.base_share[rows] = known.base_share
        self.table[rows] = known.table
        self.settled[rows] = known.settled


@dataclass(frozen=True, slots=True)
class Forecast:
    """The way from base masses to the answer; all given that more than `generated` tokens come."""

    generated: FloatArray
    base: FloatArray
    """[N, K]: masses of the base, as they came."""
    mean: FloatArray
    """[N] Of the base's log length."""
    cdfs: FloatArray
    """[2, N, K]: stretched base, histogram."""
    base_share: FloatArray
    mixed_cdf: FloatArray
    table: FloatArray
    answer: FloatArray
    """[N, K]: recalibrated CDF."""

    @property
    def variance(self) -> FloatArray:
        """[N] Of the base's log length."""
        return log_moments(self.base)[1]

    @property
    def parts(self) -> FloatArray:
        """[2, N, K] Bin masses: stretched base, histogram."""
        return np.diff(self.cdfs, axis=-1, prepend=0.0)


def forecast(
    base: FloatArray, known: Known, generated: FloatArray, usable: NDArray[np.bool_] | None
) -> Forecast:
    """The answers to base masses [N, K] after `generated` [N] tokens. `usable` [N]: False where there is no base.

    Raises ValueError on other base rows that are not distributions.
    """
    g = np.fmin(np.fmax(generated, 0.0), OPEN_EDGE - 1)  # nan: nothing is known to be out
    missing = None if usable is None or usable.all() else ~usable
    mass = _distributions(base if missing is None else np.where(missing[:, None], TAIL, base))
    mean = mass @ LOG_MIDDLE
    cdfs = np.empty((2, *mass.shape))
    cdfs[0] = stretched_cdf(mass, mean, known.shipped + known.offset, known.scale)
    cdfs[1] = known.histogram
    if g.any():
        cdfs = _given(cdfs, g)
    share = known.base_share if missing is None else np.where(missing, 0.0, known.base_share)
    mixed_cdf = share[:, None] * cdfs[0]
    mixed_cdf += (1 - share)[:, None] * cdfs[1]
    np.minimum(mixed_cdf, 1.0, out=mixed_cdf)
    mixed_cdf[:, -1] = 1.0
    return Forecast(g, mass, mean, cdfs, share, mixed_cdf, known.table, recalibrated(mixed_cdf, known.table))


def _distributions(base: FloatArray) -> FloatArray:
    """Checked and scaled to sum to 1, with the tail every reader mixes in."""
    mass = np.asarray(base, dtype=np.float64)
    total = np.add.reduce(mass, axis=1)
    # Comparisons with nan are false; an infinite mass has an infinite sum.
    good = (
        np.minimum.reduce(mass, axis=None, initial=0.0) >= 0 and (total > 0).all() and (total < np.inf).all()
    )
    if mass.shape[1] != K or not good:
        raise ValueError("bin masses must be finite, not negative, and not all zero")
    scaled = ((1 - TAIL_MIX) / total)[:, None] * mass
    scaled += _TAIL_SHARE
    return np.asarray(scaled)


def _given(cdfs: FloatArray, generated: FloatArray) -> FloatArray:
    """CDFs [..., N, K] given that more than `generated` [N] tokens come."""
    ahead = np.clip((UPPER - generated[:, None]) / (UPPER - LOWER), 0.0, 1.0)
    left = np.diff(cdfs, axis=-1, prepend=0.0) * ahead + 1e-12 * TAIL * ahead
    left /= left.sum(axis=-1, keepdims=True)
    return np.asarray(np.add.accumulate(left, axis=-1))


def cdf_at(cdf: FloatArray, lengths: FloatArray, generated: FloatArray) -> FloatArray:
    """P(L <= x) [N] of CDFs [N, K] that begin at `generated`."""
    k = np.minimum(np.searchsorted(UPPER, lengths, side="left"), K - 1)
    rows = np.arange(len(cdf))
    below = np.where(k > 0, cdf[rows, k - 1], 0.0)
    low = np.maximum(LOWER[k], generated)
    share = np.clip((lengths - low) / np.maximum(UPPER[k] - low, 1e-9), 0.0, 1.0)
    return np.asarray(below + share * (cdf[rows, k] - below))


def whole(cdf: FloatArray, generated: FloatArray) -> FloatArray:
    """Bin masses of the whole length which, conditioned on `generated` and with the heavy tail mixed in as all readers
    do, have these CDFs."""
    mass = cdf.copy()
    mass[:, 1:] -= cdf[:, :-1]
    if not generated.any():
        mass -= _TAIL_SHARE
        np.maximum(mass, 0.0, out=mass)
        mass /= np.add.reduce(mass, axis=1)[:, None]
        return mass
    ahead = np.clip((UPPER - generated[:, None]) / (UPPER - LOWER), 0.0, 1.0)
    tail = TAIL_MIX * TAIL * ahead
    mass = np.maximum(mass * (1 - TAIL_MIX + tail.sum(axis=1, keepdims=True)) - tail, 0.0)
    mass = np.where(ahead > 0, mass / np.maximum(ahead, 1e-12), 0.0)
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def width(cdf: FloatArray) -> FloatArray:
    """Log of P90 / P50, to within a bin."""
    return np.asarray(
        LOG_MIDDLE[np.minimum((cdf < 0.9).sum(axis=1), K - 1)]
        - LOG_MIDDLE[np.minimum((cdf < 0.5).sum(axis=1), K - 1)]
    )
