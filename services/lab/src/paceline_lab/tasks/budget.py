"""What shares are worth: a task with a budget, served stage by stage to its sub-deadlines.

Each stage is served just in time: it takes what it was given, unless that would need more than `top_speed` times the
speed at which the whole task would just fit (then it takes work / top speed, and what is lost comes off the budget
of later stages). True shares need speed 1 throughout. A stage given too little needs more speed than there may be;
one given too much leaves later ones short.
"""

import math
from collections.abc import Sequence


def run_budget(
    work: Sequence[float], shares: Sequence[float], phis: Sequence[float], top_speed: float
) -> tuple[bool, float, float]:
    """Whether the task ends in its budget of 1, and the mean and the greatest speed that its work was served at.

    The mean is over work (the integral of speed squared over time): what just-in-time service costs the others, 1 at
    best.

    `shares`: of each stage in the work that is left at its begin; where `phis` is a number, the stage has to end at
    that share of the whole budget instead.
    """
    total = sum(work)
    left, fastest, pressure = 1.0, 0.0, 0.0
    for stage, share, phi in zip(work, shares, phis, strict=True):
        need = stage / total
        given = share * left if math.isnan(phi) else phi - (1.0 - left)
        took = max(given, need / top_speed, 1e-12)
        fastest = max(fastest, need / took)
        pressure += need * need / took
        left -= took
    return left >= -1e-6, pressure, fastest
