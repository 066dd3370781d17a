"""A whole live run: measure the idle stack, choose the rate, drive, score."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from paceline_lab.live.calibrate import measure_capacity, measure_idle
from paceline_lab.live.client import Client
from paceline_lab.live.driver import Driver, Progress
from paceline_lab.live.objectives import IdleTimes, Multiples, Objectives, objectives_from
from paceline_lab.live.report import LiveReport
from paceline_lab.live.workload import WorkloadSpec, jobs_of
from paceline_lab.prompts.library import load_library

DEFAULT_LOAD = 0.7
_GRACE_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class LiveSpec:
    """What to run. `workload.rate_per_s` 0: `load` times the capacity that is measured first.

    `objectives` None: `multiples` of measured idle times. `warmup_s` is not scored; `grace_s` (0: 1.5 times the longest
    budget, at most a minute) is given to what is still running at the end.
    """

    workload: WorkloadSpec
    load: float = DEFAULT_LOAD
    multiples: Multiples = field(default_factory=Multiples)
    objectives: Objectives | None = None
    warmup_s: float = 10.0
    grace_s: float = 0.0
    policy_label: str = ""
    transport: str = "grpc"
    engines: tuple[dict[str, Any], ...] = ()


async def run_live(
    spec: LiveSpec,
    client: Client,
    *,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> LiveReport:
    """Run it. Raises CalibrationError when the stack does not answer single calls."""
    library = load_library()
    idle: IdleTimes | None = None
    objectives = spec.objectives
    if objectives is None or spec.workload.rate_per_s <= 0:
        idle = await measure_idle(client, library, say)
    if objectives is None:
        assert idle is not None
        objectives = objectives_from(idle, spec.multiples, library)
        say(
            f"objectives: TTFT {objectives.ttft_ms:.0f} ms and TBT {objectives.tbt_ms:.0f} ms, deadline "
            f"{objectives.deadline_ms:.0f} ms, task {objectives.task_stage_ms:.0f} ms a stage"
        )
    workload, rate_source = spec.workload, "given"
    if workload.rate_per_s <= 0:
        assert idle is not None
        capacity = await measure_capacity(client, library, workload.mix, idle, max(1, len(spec.engines)), say)
        workload = replace(workload, rate_per_s=round(capacity.jobs_per_s * spec.load, 3))
        rate_source = f"{spec.load:g} of a measured capacity of {capacity.jobs_per_s:.2f} jobs/s"
    say(f"rate: {workload.rate_per_s:g} jobs/s ({rate_source})")
    grace_s = spec.grace_s or min(_GRACE_LIMIT_S, 1.5 * objectives.longest_ms / 1000)
    driver = Driver(client, objectives, run_id=f"live-{uuid4().hex[:8]}")
    jobs = await driver.run(jobs_of(workload, library), workload.duration_s, grace_s, on_progress)
    return LiveReport(
        workload=workload,
        warmup_s=spec.warmup_s,
        grace_s=grace_s,
        rate_source=rate_source,
        policy_label=spec.policy_label,
        transport=spec.transport,
        engines=spec.engines,
        idle=idle,
        objectives=objectives,
        jobs=tuple(jobs),
        lag_ms=tuple(driver.lag_ms),
        errors=dict(driver.errors),
    )
