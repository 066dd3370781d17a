"""Workloads by name."""

from collections.abc import Mapping
from pathlib import Path

from paceline_lab.workloads.trace import Workload


class UnknownWorkloadError(ValueError):
    """No workload of that name."""


def workload_names() -> list[str]:
    """Every name that `make_workload` knows."""
    raise NotImplementedError


def make_workload(
    name: str,
    *,
    rate_per_s: float,
    duration_s: float,
    seed: int,
    cv: float = 1.0,
    slo_scale: float = 1.0,
    mix: Mapping[str, float] | None = None,
    data: Path | None = None,
) -> Workload:
    """The workload `name` for one seed.

    `rate_per_s` counts jobs (a task is one). `cv` is the coefficient of variation of the gaps between arrivals:
    1 is Poisson, other values Gamma. Every time of every objective is multiplied by `slo_scale`. `mix` weighs the
    parts of a mixed workload by name. `data` is the folder of public traces, for the workloads that replay one.
    Raises UnknownWorkloadError, and ValueError for what does not fit the workload.
    """
    raise NotImplementedError
