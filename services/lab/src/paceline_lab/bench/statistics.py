"""Medians and ratios of interleaved samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """Samples in one unit."""

    p50: float
    p10: float
    p90: float
    samples: int


def summary(values: Sequence[float]) -> Summary:
    """Median and spread; raises ValueError without samples."""
    if not values:
        raise ValueError("no samples")
    p10, p50, p90 = np.percentile(np.array(values, dtype=np.float64), (10, 50, 90))
    return Summary(float(p50), float(p10), float(p90), len(values))


def paired_difference(left: Sequence[float], right: Sequence[float]) -> Summary:
    """Differences right - left of samples taken one after the other: what drifts slowly falls out."""
    return summary([b - a for a, b in zip(left, right, strict=True)])


def paired_ratio(left: Sequence[float], right: Sequence[float]) -> Summary:
    """Ratios right / left of samples taken one after the other."""
    return summary([b / a for a, b in zip(left, right, strict=True)])
