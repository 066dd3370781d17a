"""When jobs arrive: renewal processes with a stated variation, warped by a daily rhythm, or stamps replayed."""

import numpy as np

from paceline_lab.live.arrivals import Arrivals, arrival_times_s
from paceline_lab.workloads.lengths import Array


def renewal_ms(rate_per_s: float, duration_s: float, cv: float, rng: np.random.Generator) -> Array:
    """Poisson arrivals for `cv` = 1, else Gamma gaps with that coefficient of variation; ms in [0, duration)."""
    kind = Arrivals.POISSON if cv == 1.0 else Arrivals.GAMMA
    return arrival_times_s(kind, rate_per_s, duration_s, rng, cv=cv) * 1e3


def counted_ms(count: int, duration_s: float, cv: float, rng: np.random.Generator) -> Array:
    """Exactly `count` arrivals: gaps of the same kind, stretched so that they fill the duration.

    For `cv` = 1 these are the arrivals of a Poisson process of which the number is known: uniform points.
    """
    gaps = rng.gamma(1.0 / cv**2, 1.0, size=count + 1)
    return np.asarray(np.cumsum(gaps)[:-1] / gaps.sum() * duration_s * 1e3)


def warped_ms(times_ms: Array, duration_s: float, swing: float, phase: float = 0.0) -> Array:
    """The arrivals moved so that their rate follows 1 + swing * sin, one period over the duration; 0 <= swing < 1.

    Times are read as positions on the expected count and inverted, which keeps number and order.
    """
    grid = np.linspace(0.0, 1.0, 513)
    angle = 2 * np.pi * (grid + phase)
    expected = grid + swing / (2 * np.pi) * (np.cos(2 * np.pi * phase) - np.cos(angle))
    return np.asarray(np.interp(times_ms / (duration_s * 1e3), expected, grid) * duration_s * 1e3)


def replayed_rows(
    stamps_s: Array, rate_per_s: float, duration_s: float, cv: float, rng: np.random.Generator
) -> tuple[Array, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Arrivals of a trace from a random place on, its clock stretched to `rate_per_s`: (ms, rows of the trace).

    The trace starts over at its end. With `cv` other than 1 only the order of the rows is the trace's; arrivals are
    then Gamma.
    """
    stamps_s = stamps_s - stamps_s[0]
    rows = len(stamps_s)
    period_s = stamps_s[-1] * rows / max(rows - 1, 1)
    if cv != 1.0 or period_s <= 0:
        times = renewal_ms(rate_per_s, duration_s, cv, rng)
        first = int(rng.integers(rows))
        return times, (first + np.arange(len(times))) % rows
    stretch = rows / (period_s * rate_per_s)  # seconds here for a second of the trace
    start_s = float(rng.random() * period_s)
    laps = int(np.ceil(duration_s / stretch / period_s)) + 1
    every_s = (stamps_s[None, :] + period_s * np.arange(laps)[:, None]).ravel() - start_s
    taken = np.flatnonzero((every_s >= 0) & (every_s * stretch < duration_s))
    return every_s[taken] * stretch * 1e3, taken % rows
