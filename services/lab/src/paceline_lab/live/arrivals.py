"""When requests arrive: Poisson, or Gamma with a stated coefficient of variation."""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Arrivals(StrEnum):
    """The process of arrivals."""

    POISSON = "poisson"
    GAMMA = "gamma"


def arrival_times_s(
    kind: Arrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator, *, cv: float = 1.0
) -> NDArray[np.float64]:
    """Arrival times in [0, duration_s), ascending.

    Gaps are exponential with mean 1/rate (Poisson), or Gamma with the same mean and standard deviation cv/rate:
    shape 1/cv^2. A Gamma process starts with a full gap; it is burstier than Poisson for cv > 1.
    """
    if rate_per_s <= 0 or duration_s <= 0 or cv <= 0:
        raise ValueError("rate, duration and cv must be greater than 0")
    shape = 1.0 if kind is Arrivals.POISSON else 1.0 / cv**2
    scale = 1.0 / (rate_per_s * shape)
    times: list[NDArray[np.float64]] = []
    last = 0.0
    # Drawn in blocks of fixed size, so that a longer run begins with the arrivals of a shorter one.
    while last < duration_s:
        block = last + np.cumsum(rng.gamma(shape, scale, size=256))
        times.append(block)
        last = float(block[-1])
    every = np.concatenate(times)
    return every[every < duration_s]
