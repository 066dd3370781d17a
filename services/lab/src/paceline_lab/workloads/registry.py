"""Workloads by name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from paceline_lab.workloads.goodserve import goodserve_mix, motivation
from paceline_lab.workloads.jitserve import jitserve_mix
from paceline_lab.workloads.objectives import ARTIFACT, PAPER
from paceline_lab.workloads.production import production
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.trace import Workload
from paceline_lab.workloads.traces.azure import azure_code, azure_conv
from paceline_lab.workloads.traces.mooncake import mooncake
from paceline_lab.workloads.traces.tasks import claude_code_tasks, deep_research_dags

_MAKERS: dict[str, Callable[[WorkloadRequest], Workload]] = {
    "jitserve-mix": partial(jitserve_mix, targets=PAPER),
    "jitserve-mix-artifact": partial(jitserve_mix, targets=ARTIFACT),
    "goodserve-mix": goodserve_mix,
    "motivation": motivation,
    "production": production,
    "azure-conv": azure_conv,
    "azure-code": azure_code,
    "mooncake": mooncake,
    "jitserve-deepresearch": deep_research_dags,
    "claude-code": claude_code_tasks,
}


class UnknownWorkloadError(ValueError):
    """No workload of that name."""


def workload_names() -> list[str]:
    """Every name that `make_workload` knows."""
    return [*_MAKERS]


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
    """The workload `name` for one seed; the same arguments give the same workload.

    `rate_per_s` counts jobs (a task is one). `cv` is the coefficient of variation of the gaps between arrivals:
    1 is Poisson (a replayed trace: its own stamps), other values Gamma. Every time of every objective is multiplied
    by `slo_scale`. `mix` weighs the parts of a mixed workload by name. `data` is the folder of public traces, for the
    workloads that replay one. Raises UnknownWorkloadError, and ValueError for what does not fit the workload.
    """
    if name not in _MAKERS:
        raise UnknownWorkloadError(f"no workload {name!r}: choose {', '.join(_MAKERS)}")
    return _MAKERS[name](WorkloadRequest(name, rate_per_s, duration_s, seed, cv, slo_scale, mix, data))
