"""The simulator against the emulated TensorRT-LLM engine behind the real line: the same jobs, policy and step times.

Both take a step's time from the same profile; what differs is everything between a client and a step: gRPC, the router,
the scheduler's process, the agent's frames, the emulated engine's own queue, blocks and chunks. Times here are emulated
ones: what a clock said, divided by the time scale.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from paceline_core.engines.shipped import load_profile
from paceline_core.slo import Slo, SloClass
from paceline_lab.live.client import CallResult, CallSpec, Client
from paceline_lab.sim.call import SimJob
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.validation import ATTAINMENT_TARGET, Seen, errors, replay_on, seen
from paceline_lab.workloads.registry import make_workload
from paceline_lab.workloads.trace import Job, Workload

_FIRST_ID: Final = 300
_IDS: Final = 9000
"""Prompts are drawn from so many ids of the emulated vocabulary: no two share a block."""
_START_S: Final = 0.2
_PATIENCE: Final = (
    # A process that others keep waiting is slow, not lost: the figures show it.
    "executor.stall_pause_s=120",
    "executor.orphan_ttl_s=120",
    "executor.trtllm.progress_timeout_s=600",
    "executor.trtllm.abort_timeout_s=120",
    "executor.trtllm.health_interval_s=30",
    "scheduler.engine_lost_after_s=120",
    "scheduler.router_grace_s=120",
    "router.scheduler_grace_s=120",
)


@dataclass(frozen=True, slots=True)
class AgreementPlan:
    """What is run. Seconds are emulated ones."""

    workload: str = "jitserve-mix"
    rate_per_s: float = 1.0
    duration_s: float = 120.0
    seed: int = 1
    policy: str = "sarathi"
    profile: str = "a100-80-8b"
    time_scale: float = 2.0
    """Real seconds per emulated second: enough for the machine to keep up."""
    max_batch: int = 32
    step_tokens: int = 512
    """Tokens of one step, decode and prefill together."""
    block_tokens: int = 32
    context_tokens: int = 32_768

    def overrides(self) -> tuple[str, ...]:
        """Settings of the stack that is measured."""
        return (
            "up.engines=1",
            "executor.backend=trtllm",
            "executor.trtllm.emulated=true",
            f"executor.trtllm.profile={self.profile}",
            f"executor.trtllm.time_scale={self.time_scale}",
            f"executor.trtllm.max_num_tokens={self.step_tokens}",
            f"executor.trtllm.tokens_per_block={self.block_tokens}",
            f"executor.max_batch={self.max_batch}",
            f"executor.max_resident={self.max_batch}",
            f"executor.context_tokens={self.context_tokens}",
            f"scheduler.policy={self.policy}",
            "store.url=''",
            *_PATIENCE,
        )

    def engine(self) -> EngineSpec:
        """The same engine, simulated."""
        return EngineSpec(
            load_profile(self.profile), self.max_batch, self.max_batch, self.block_tokens, self.context_tokens,
            keeps_kv_when_paused=False, frame_only=True,
        )  # fmt: skip

    def simulated_policy(self) -> str:
        """The policy with the step's budget, which the emulated engine keeps by itself."""
        return f"sarathi:token_budget={self.step_tokens}" if self.policy == "sarathi" else self.policy

    def jobs(self) -> Workload:
        """The jobs that fit into the engine's context."""
        made = make_workload(
            self.workload, rate_per_s=self.rate_per_s, duration_s=self.duration_s, seed=self.seed
        )
        kept = [
            job
            for job in made.jobs
            if all(call.prompt_tokens + call.output_tokens < self.context_tokens for call in job.calls)
        ]
        return Workload.of(made.name, made.seed, kept, made.duration_ms, made.rate_per_s)


@dataclass(frozen=True, slots=True)
class JobSeen:
    """What became of a job: its calls by place, and whether it was in time."""

    calls: Mapping[int, Seen]
    in_time: bool
    errors: tuple[str, ...] = ()
    """Of calls that did not end well."""


def job_seen(job: Job, times: Mapping[int, tuple[float, float, float]]) -> JobSeen:
    """From (released, first token, last token) of each call, in emulated milliseconds since the job's arrival."""
    calls = {
        place: seen(first - released, last - released, job.calls[place].output_tokens, job.slo)
        for place, (released, first, last) in times.items()
    }
    whole = len(times) == len(job.calls) and all(math.isfinite(last) for _, _, last in times.values())
    if job.slo.slo_class is SloClass.TASK:
        in_time = whole and max(last for _, _, last in times.values()) <= job.slo.e2e_ms
    else:
        in_time = whole and calls[0].in_time
    return JobSeen(calls, in_time)


async def drive(
    workload: Workload, client: Client, time_scale: float, say: Callable[[str], None]
) -> tuple[list[JobSeen], float]:
    """Send the jobs when they are due and follow their calls. Also: how late the latest was sent, emulated ms."""
    began_s = time.perf_counter() + _START_S
    latest_ms = 0.0
    tasks: list[asyncio.Task[JobSeen]] = []
    async with asyncio.TaskGroup() as group:
        for job in workload.jobs:
            due_s = began_s + job.arrival_ms / 1e3 * time_scale
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            latest_ms = max(latest_ms, (time.perf_counter() - due_s) * 1e3 / time_scale)
            tasks.append(group.create_task(_run_job(job, due_s, client, time_scale)))
        say(f"{len(tasks)} jobs sent, {sum(not task.done() for task in tasks)} are still at work")
    return [task.result() for task in tasks], latest_ms


async def _run_job(job: Job, began_s: float, client: Client, time_scale: float) -> JobSeen:
    ended = [asyncio.Event() for _ in job.calls]
    times: dict[int, tuple[float, float, float]] = {}
    failures: list[str] = []
    slo = _scaled(job.slo, time_scale)

    async def run(place: int) -> None:
        call = job.calls[place]
        for parent in call.parents:
            await ended[parent].wait()
        if any(parent not in times for parent in call.parents):
            # What it would have been built from never came.
            ended[place].set()
            return
        await asyncio.sleep(call.tool_ms / 1e3 * time_scale)
        released_s = time.perf_counter()
        result = CallResult()
        spec = CallSpec(
            request_id=_name(job, place),
            messages=(),
            max_tokens=call.output_tokens,
            slo=replace(slo, task_final=call.stage == job.stages - 1 and place == len(job.calls) - 1),
            app=job.app,
            stage=f"stage-{call.stage}" if job.slo.slo_class is SloClass.TASK else "",
            parents=tuple(_name(job, parent) for parent in call.parents),
            ignore_eos=True,
            token_ids=_prompt(job, place),
        )
        await client.call(spec, result)
        if len(result.token_s) == call.output_tokens:
            moments = (released_s, result.token_s[0], result.token_s[-1])
            released, first, last = ((moment - began_s) * 1e3 / time_scale for moment in moments)
            times[place] = (released, first, last)
        else:
            failures.append((result.error or result.finish).split(":")[0])
        ended[place].set()

    async with asyncio.TaskGroup() as group:
        for place in range(len(job.calls)):
            group.create_task(run(place))
    return replace(job_seen(job, times), errors=tuple(failures))


def simulated(plan: AgreementPlan, workload: Workload) -> list[JobSeen]:
    """The same jobs, simulated."""
    result = replay_on(workload, [plan.engine()], plan.simulated_policy())
    by_id = {sim.job.job_id: sim for sim in result.jobs}
    return [_sim_seen(by_id[job.job_id]) for job in workload.jobs]


def _sim_seen(sim: SimJob) -> JobSeen:
    times: dict[int, tuple[float, float, float]] = {}
    for place, call in sim.calls.items():
        outcome = call.outcome
        if outcome is not None and outcome.tokens == call.call.output_tokens:
            released = call.released_ms - sim.job.arrival_ms
            times[place] = (released, released + outcome.first_token_ms, released + outcome.last_token_ms)
    return job_seen(sim.job, times)


def compare(
    plan: AgreementPlan, workload: Workload, emulated: list[JobSeen], sim: list[JobSeen], late_ms: float
) -> dict[str, Any]:
    """How far they are apart. `attainment` is of jobs; the errors are of the calls that ended on both sides."""
    pairs = [
        (job.calls[place], other.calls[place])
        for job, other in zip(emulated, sim, strict=True)
        for place in sorted(job.calls.keys() & other.calls.keys())
    ]
    shares = [float(np.mean([job.in_time for job in side])) for side in (emulated, sim)]
    by_class = {}
    for slo_class in sorted({job.slo.slo_class for job in workload.jobs}):
        of_class = [job.slo.slo_class is slo_class for job in workload.jobs]
        by_class[slo_class.name.lower()] = {
            "jobs": sum(of_class),
            **{
                name: float(np.mean([seen.in_time for seen, own in zip(side, of_class, strict=True) if own]))
                for name, side in (("emulated", emulated), ("simulated", sim))
            },
        }
    calls = errors([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return {
        "plan": asdict(plan),
        "jobs": len(workload.jobs),
        "calls": workload.calls,
        "calls_failed": workload.calls - sum(len(job.calls) for job in emulated),
        "failures": dict(Counter(error for job in emulated for error in job.errors)),
        "attainment": {"emulated": shares[0], "simulated": shares[1]},
        "attainment_difference": shares[1] - shares[0],
        "jobs_judged_differently": sum(a.in_time != b.in_time for a, b in zip(emulated, sim, strict=True)),
        "by_class": by_class,
        "ttft_error": calls["ttft_error"],
        "tpot_error": calls["tpot_error"],
        "ttft_ms_deciles": _renamed(calls["ttft_ms_deciles"]),
        "tpot_ms_median": _renamed(calls["tpot_ms_median"]),
        "sent_late_ms_max": late_ms,
        "agrees": all(not job.errors for job in emulated) and abs(shares[1] - shares[0]) <= ATTAINMENT_TARGET,
    }


def _renamed(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"emulated": figures["measured"], "simulated": figures["simulated"]}


def _name(job: Job, place: int) -> str:
    return f"agree-{job.job_id}-{place}"


def _prompt(job: Job, place: int) -> bytes:
    rng = np.random.default_rng([job.job_id, place])
    return rng.integers(_FIRST_ID, _FIRST_ID + _IDS, job.calls[place].prompt_tokens).astype("<i4").tobytes()


def _scaled(slo: Slo, factor: float) -> Slo:
    """Its times on a clock that is so many times slower."""
    return replace(slo, ttft_ms=slo.ttft_ms * factor, tbt_ms=slo.tbt_ms * factor, e2e_ms=slo.e2e_ms * factor)
