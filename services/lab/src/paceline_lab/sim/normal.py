"""The normal distribution for arrays, without scipy."""

import math
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_GRID: Final = np.linspace(-8.0, 8.0, 16_001)
_CDF: Final = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in _GRID.tolist()])
_LEAST: Final = 1e-12


def cdf(x: Floats) -> Floats:
    """P(Z <= x), by a table that is good to 1e-7."""
    return np.asarray(np.interp(x, _GRID, _CDF))


def quantile(p: Floats) -> Floats:
    """The x of P(Z <= x) = p; p is kept off 0 and 1."""
    inverse = NormalDist().inv_cdf
    flat = np.clip(p, _LEAST, 1 - _LEAST)
    return np.fromiter((inverse(value) for value in flat.ravel().tolist()), float, flat.size).reshape(p.shape)
