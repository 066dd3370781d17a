"""The simulator against the emulated engine behind the line: who is in time, and that both get the same jobs."""

import asyncio
import math
from contextlib import AsyncExitStack

import pytest

from paceline_core.slo import Slo, SloClass
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_lab.live.session_client import SessionClient
from paceline_lab.sim.agreement import AgreementPlan, JobSeen, compare, drive, job_seen, simulated
from paceline_lab.workloads.trace import Call, Job, Workload
from paceline_router.app import RouterApp
from paceline_router.config import Config
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

CHAT = Slo(SloClass.LATENCY, ttft_ms=100.0, tbt_ms=10.0)
TASK = Slo(SloClass.TASK, e2e_ms=500.0, task_id="t")


def job(slo: Slo, *calls: Call, number: int = 0, arrival_ms: float = 0.0) -> Job:
    return Job(number, "app", "t0", slo, arrival_ms, calls)


@pytest.mark.parametrize(
    ("first", "last", "in_time"), [(100.0, 190.0, True), (101.0, 150.0, False), (50.0, 191.0, False)]
)
def test_a_stream_is_in_time_by_its_first_and_its_last_token(
    first: float, last: float, in_time: bool
) -> None:
    seen = job_seen(job(CHAT, Call(0, (), 5, 10, 0.0)), {0: (0.0, first, last)})
    assert seen.in_time is in_time


def test_a_task_is_in_time_when_all_of_it_is() -> None:
    chain = job(TASK, Call(0, (), 5, 5, 0.0), Call(1, (0,), 5, 5, 20.0))
    both = {0: (0.0, 40.0, 90.0), 1: (110.0, 200.0, 499.0)}
    assert job_seen(chain, both).in_time
    assert not job_seen(chain, {**both, 1: (110.0, 200.0, 501.0)}).in_time
    assert not job_seen(chain, {0: both[0]}).in_time, "half a task is none"


def workload() -> Workload:
    jobs = [
        job(CHAT, Call(0, (), 40, 12, 0.0), number=0),
        job(
            TASK, Call(0, (), 64, 6, 0.0), Call(0, (), 30, 9, 0.0), Call(1, (0, 1), 90, 5, 15.0),
            number=1, arrival_ms=30.0,
        ),
        job(Slo(SloClass.DEADLINE, e2e_ms=60_000.0), Call(0, (), 200, 20, 0.0), number=2, arrival_ms=60.0),
    ]  # fmt: skip
    return Workload.of("small", 1, jobs, 100.0, 30.0)


def test_how_far_both_sides_are_apart_is_counted_in_jobs() -> None:
    plan, jobs = AgreementPlan(), workload()
    sim = simulated(plan, jobs)
    assert [len(seen.calls) for seen in sim] == [1, 3, 1]
    other = [
        JobSeen(seen.calls, not seen.in_time if place == 2 else seen.in_time)
        for place, seen in enumerate(sim)
    ]
    row = compare(plan, jobs, other, sim, 0.0)
    assert row["jobs_judged_differently"] == 1
    assert abs(row["attainment_difference"]) == pytest.approx(1 / 3)
    assert not row["agrees"]
    assert row["by_class"]["deadline"] == {"jobs": 1, "emulated": 0.0, "simulated": 1.0}
    assert (row["ttft_error"], row["tpot_error"]) == (0.0, 0.0)


async def test_the_line_answers_the_same_jobs_as_the_simulator() -> None:
    plan, jobs = AgreementPlan(time_scale=0.05), workload()
    trtllm = {
        "emulated": True,
        "time_scale": plan.time_scale,
        "max_num_tokens": plan.step_tokens,
        "tokens_per_block": plan.block_tokens,
    }
    executor = ExecutorConfig.model_validate(
        {"listen": "127.0.0.1:0", "backend": "trtllm", "trtllm": trtllm, "context_tokens": 2048}
    )
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ExecutorApp(ExecutorServiceConfig(executor=executor)))
        scheduler = await stack.enter_async_context(
            SchedulerApp(SchedulerConfig(listen="127.0.0.1:0", executor=engine.address, policy=plan.policy))
        )
        router = await stack.enter_async_context(
            RouterApp(
                Config.model_validate(
                    {
                        "router": {"listen": "127.0.0.1:0", "schedulers": (scheduler.address,)},
                        "store": {"url": ""},
                    }
                )
            )
        )
        async with asyncio.timeout(60):
            while not any(engine.up for engine in router.fleet):  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.01)
        client = await stack.enter_async_context(SessionClient(router.address))
        emulated, _ = await drive(jobs, client, plan.time_scale, lambda _: None)
    sim = simulated(plan, jobs)
    row = compare(plan, jobs, emulated, sim, 0.0)
    assert row["calls_failed"] == 0
    assert [sorted(seen.calls) for seen in emulated] == [sorted(seen.calls) for seen in sim]
    assert all(math.isfinite(seen.ttft_ms) for answered in emulated for seen in answered.calls.values())
