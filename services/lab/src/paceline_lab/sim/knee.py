"""The knee of an engine under a workload: the load that other loads are multiples of.

It is found by simulation with `sarathi`, which needs no estimates: the greatest rate at which the share of jobs that
attain is at least 90 % of its value at a fifth of the capacity, and at least 90 % of the output tokens asked for are
made. Capacity is the rate at which prefill and decode of the mean job take all the engines' time with full batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paceline_lab.sim.cell import Cell, Periods, WorkloadSpec, longest_budget_s, run_cell
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.workloads.trace import Workload

KEPT: Final = 0.9
_LOW: Final = 0.2
_HIGH: Final = 1.25
TOLERANCE: Final = 0.03
_SEED: Final = 991
_BUDGETS: Final = 5.0
_LEAST_JOBS: Final = 150
"""Length of the scored window of a trial, in longest budgets, and the jobs that it holds at least."""


@dataclass(frozen=True, slots=True)
class Knee:
    """Jobs per second."""

    rate_per_s: float
    capacity_per_s: float
    low_attainment: float


def find_knee(
    workload: WorkloadSpec,
    engines: Sequence[EngineSpec],
    placement: str = "",
    on_trial: Callable[[dict[str, Any]], None] = lambda _: None,
    tolerance: float = TOLERANCE,
) -> Knee:
    """By bisection, to a share of `tolerance`. Deterministic: one seed of its own."""
    sample = workload.training()
    capacity = sum(jobs_per_s(engine, sample) for engine in engines)
    output_per_job = sum(job.output_tokens for job in sample.jobs) / len(sample.jobs)
    budget_s = longest_budget_s(workload)

    def trial(rate_per_s: float) -> tuple[float, float]:
        periods = Periods(budget_s, max(_BUDGETS * budget_s, _LEAST_JOBS / rate_per_s), budget_s)
        cell = Cell(
            "sarathi",
            _SEED,
            rate_per_s,
            float("nan"),
            workload,
            tuple(engines),
            periods,
            placement=placement,
        )
        row = run_cell(cell)
        on_trial(row)
        return row["attainment"] or 0.0, row["output_tokens_per_s"] / (rate_per_s * output_per_job)

    low_attainment, _ = trial(_LOW * capacity)
    low, high = _LOW * capacity, _HIGH * capacity
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        attainment, made = trial(middle)
        if attainment >= KEPT * low_attainment and made >= KEPT:
            low = middle
        else:
            high = middle
    return Knee(low, capacity, low_attainment)


def jobs_per_s(engine: EngineSpec, sample: Workload) -> float:
    """Rate at which mean jobs take all of an engine's time with full batches, by its linear profile."""
    model = engine.profile.model
    calls = [call for job in sample.jobs for call in job.calls]
    context = sum(call.prompt_tokens + call.output_tokens / 2 for call in calls) / len(calls)
    batch = engine.max_batch
    token_ms = model.decode_ms(batch, batch * context) / batch
    work_ms = sum(call.prompt_tokens * model.d_ms + call.output_tokens * token_ms for call in calls)
    return 1e3 * len(sample.jobs) / work_ms
