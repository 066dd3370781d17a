"""Means and paired differences over seeds, with 95 % confidence intervals (Student's t)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % points of Student's t by degrees of freedom; a normal's beyond the table.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and half the width of its 95 % interval (not a number with fewer than two samples)."""

    mean: float
    half: float
    samples: int

    @property
    def above_zero(self) -> bool:
        """True when the whole interval is above 0: a gain that is significant at 95 %."""
        return self.mean - self.half > 0

    @property
    def below_zero(self) -> bool:
        """True when the whole interval is below 0: a loss that is significant at 95 %."""
        return self.mean + self.half < 0


def interval(values: Sequence[float]) -> Interval:
    """Mean over seeds. Raises ValueError without samples."""
    count = len(values)
    if not count:
        raise ValueError("no samples")
    mean = float(np.mean(values))
    if count < 2:
        return Interval(mean, math.nan, count)
    point = _T95[count - 2] if count - 2 < len(_T95) else 1.96
    return Interval(mean, point * float(np.std(values, ddof=1)) / math.sqrt(count), count)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Differences ours - theirs of runs with the same seed, in the same order."""
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])
