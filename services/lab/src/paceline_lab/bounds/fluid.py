"""A fluid upper bound on the goodput of a trace: a linear program that every schedule is a feasible point of.

Why it holds for any policy, online or clairvoyant: take a schedule and spread each step's work over the step's time.
In every stretch of time and group of engines this meets the inequalities of `capacity` (steps are no shorter than
their memory and their compute line, and hold at most `max_batch` sequences); a call is in one step at a time, so a
job's rate is bounded; what counts of a job is computed between its arrival and its due time; a deadline job or a task
counts when all of its prompt and output is computed, a stream's token only after its prompt. The program keeps just
these facts and lets everything else go: whole tokens, whole jobs (a fraction z of a job brings the fraction z of its
worth), order within a bucket of time, precedence of stages but for the longest path, KV memory, the cost of changing
a run set, and where in a bucket a job arrives or is due. Leaving out constraints can only raise the optimum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paceline_lab.bounds.capacity import EngineGroup, capacity_of
from paceline_lab.bounds.demand import demand_of
from paceline_lab.bounds.fluid_model import FluidModel
from paceline_lab.workloads.trace import Workload

MAX_BUCKETS = 24
"""Of time. Four times as many tighten the bound by less than 1 % in overload and cost ten times as much."""
LEAST_BUCKET_MS = 1000.0


@dataclass(frozen=True, slots=True)
class FluidBound:
    """Upper bounds over a scored window, as totals. Divide by the window's seconds for rates."""

    tokens_1_1: float
    """Tokens in time, prompt and output alike."""
    tokens_1_8: float
    """An output token counts 8."""
    requests: float
    """Jobs attained, best effort aside."""
    jobs: int
    """Jobs in the window, best effort aside."""
    reachable: int
    """Those of them that could count at all, each alone on the best engine."""
    bucket_ms: float


def fluid_bound(
    workload: Workload,
    engines: Sequence[EngineGroup],
    *,
    begin_ms: float = 0.0,
    end_ms: float = math.inf,
    stop_ms: float = math.inf,
    prefix_reuse: bool = True,
    max_buckets: int = MAX_BUCKETS,
) -> FluidBound:
    """The bound for jobs that arrive in [begin, end) and work done until `stop`.

    `prefix_reuse`: shared prefixes may cost nothing (False where engines keep no prefixes). Other jobs are taken to
    cost nothing, which only raises the bound. Raises MissingSolverError without scipy, and BoundError when the solver
    finds no optimum.
    """
    capacities = [capacity_of(group) for group in engines]
    least_step_ms = min(capacity.least_step_ms for capacity in capacities)
    token_prefill_ms = min(capacity.token_prefill_ms for capacity in capacities)
    scored = [
        job
        for job in workload.jobs
        if begin_ms <= job.arrival_ms < end_ms and job.slo.token_due_ms(0) < math.inf
    ]
    demands = [
        demand
        for job in scored
        if (
            demand := demand_of(
                job, least_step_ms, token_prefill_ms, prefix_reuse=prefix_reuse, stop_ms=stop_ms
            )
        )
    ]
    if not demands:
        return FluidBound(0.0, 0.0, 0.0, len(scored), 0, 0.0)
    first_ms = min(demand.begin_ms for demand in demands)
    span_ms = max(demand.end_ms for demand in demands) - first_ms
    bucket_ms = max(LEAST_BUCKET_MS, float(span_ms) / max_buckets)
    model = FluidModel(demands, capacities, first_ms, bucket_ms)
    return FluidBound(
        tokens_1_1=model.token_bound(1.0),
        tokens_1_8=model.token_bound(8.0),
        requests=model.request_bound(),
        jobs=len(scored),
        reachable=len(demands),
        bucket_ms=bucket_ms,
    )
