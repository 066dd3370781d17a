"""Distributions of token counts that hit published statistics: quantile functions, log-linear between knots.

A log-normal has two parameters and published tables often four numbers that contradict it (mean, standard deviation,
median and 95th percentile of a heavy tail). A quantile function through the published quantiles, with free knots
between and beyond them, meets all four.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_lab.sim import normal

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QuantileCurve:
    """log(quantile) is linear in the level between knots."""

    levels: tuple[float, ...]
    """From 0 to 1, ascending."""
    tokens: tuple[float, ...]
    """The quantile at each level, ascending and greater than 0."""

    def __post_init__(self) -> None:
        levels, tokens = np.array(self.levels), np.array(self.tokens)
        if levels[0] != 0 or levels[-1] != 1 or np.any(np.diff(levels) <= 0):
            raise ValueError(f"levels must rise from 0 to 1, got {self.levels}")
        if len(tokens) != len(levels) or tokens[0] <= 0 or np.any(np.diff(tokens) < 0):
            raise ValueError(f"one quantile for each level, ascending and above 0, got {self.tokens}")

    def at(self, levels: Array) -> Array:
        """The quantiles at any levels in [0, 1]."""
        return np.asarray(np.exp(np.interp(levels, self.levels, np.log(self.tokens))))

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` whole token counts, at least 1."""
        return whole(self.at(rng.random(count)))

    @property
    def mean(self) -> float:
        """The mean in closed form."""
        return self._moment(1)

    @property
    def std(self) -> float:
        """The standard deviation in closed form."""
        return float(np.sqrt(self._moment(2) - self._moment(1) ** 2))

    def _moment(self, power: int) -> float:
        """E[X^power]: each segment contributes width * (end - start) / log(end / start) of X^power."""
        values = np.array(self.tokens) ** power
        start, end = values[:-1], values[1:]
        flat = np.isclose(start, end, rtol=1e-12)
        slopes = np.log(np.where(flat, 2.0, end / start))
        means = np.where(flat, start, np.where(flat, 1.0, end - start) / slopes)
        return float(np.diff(self.levels) @ means)


def whole(tokens: Array) -> NDArray[np.int64]:
    """Rounded to whole tokens, at least 1."""
    return np.maximum(np.rint(tokens), 1).astype(np.int64)


def coupled_levels(rng: np.random.Generator, count: int, correlation: float) -> tuple[Array, Array]:
    """Two columns of levels in (0, 1) whose normal scores correlate by `correlation` (a Gaussian copula)."""
    first = rng.standard_normal(count)
    second = correlation * first + np.sqrt(1 - correlation**2) * rng.standard_normal(count)
    return normal.cdf(first), normal.cdf(second)
