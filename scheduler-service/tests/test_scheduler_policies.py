"""Every policy that can be chosen live, chosen by name, over a real executor; what plans give up; tenants' shares."""

import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2, estimate_pb2, slo_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core import lengths
from paceline_core.batch.registry import POLICIES
from paceline_runtime.config_model import ConfigError
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import DEFAULT_POLICY, LIVE_POLICIES, SchedulerConfig
from paceline_scheduler.wire import PRIOR_CDF

DROP, FINISH = slo_pb2.ON_MISS_DROP, slo_pb2.ON_MISS_FINISH
LENGTH = attempt_pb2.FINISH_REASON_LENGTH
EXPIRED = attempt_pb2.FINISH_REASON_EXPIRED


def exactly(tokens):
    """An estimate that is sure of a length."""
    masses = np.zeros(lengths.K)
    masses[int(np.searchsorted(lengths.EDGES, tokens))] = 1.0
    return estimate_pb2.LengthEstimate(probabilities=masses.tolist(), source="test")


def mixed(bench, key):
    """Requests of all classes, more than fit at a time."""
    slos = (
        slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=300_000, tbt_ms=100_000)),
        slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=600_000), on_miss=DROP),
        slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo()),
        slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id=f"t{key % 8}", e2e_ms=600_000)),
    )
    tokens = 10 + 7 * (key % 5)
    task = {"task_left_ms": 600_000.0, "task_call_budget_ms": 300_000.0} if key % 4 == 3 else {}
    return bench.submit(
        key, tokens=tokens, slo=slos[key % 4], estimate=exactly(tokens), tenant=f"tenant-{key % 3}", **task
    )


def test_all_but_the_oracle_can_be_chosen_and_help_says_so():
    assert DEFAULT_POLICY in LIVE_POLICIES
    assert set(POLICIES) - set(LIVE_POLICIES) == {"oracle"}
    described = SchedulerConfig.model_fields["policy"].description
    assert all(name in described for name in LIVE_POLICIES)
    with pytest.raises(ConfigError, match="true lengths, which only the simulator knows"):
        SchedulerApp(SchedulerConfig(policy="oracle"))


def test_shares_are_positive():
    with pytest.raises(ValueError, match="greater than 0"):
        SchedulerConfig(tenant_shares={"a": 1.0, "b": 0.0})


@pytest.mark.parametrize("policy", ["gmax", "gmax-no-analyzer", "edf-shed", "pace"])
async def test_a_policy_serves_live(bench, policy):
    executor = await bench.executor(max_batch=4, max_resident=8)
    scheduler = await bench.scheduler(executor.address, policy=policy)
    router = await bench.router(scheduler)
    submits = [mixed(bench, key) for key in range(1, 33)]
    await router.send(submits=submits)
    await router.until(lambda: 32 in router.accepted)
    if policy == "gmax-no-analyzer":  # an ablation: it is told what the class usually writes
        table = scheduler.loop.state.table
        known = next(iter(table))
        assert table.lengths.cdf[known.row, :20] == pytest.approx(PRIOR_CDF[:20])
    await router.until(lambda: len(router.ended) == 32)
    assert {ended.finish_reason for ended in router.ended.values()} == {LENGTH}
    assert all(len(router.ids[s.spec.attempt_key]) == s.spec.max_tokens for s in submits)
    plan = await router.stub.GetPlan(scheduler_pb2.GetPlanRequest())
    assert plan.policy == policy


async def test_hopeless_work_ends_early_if_its_client_asked_for_it(bench):
    executor = await bench.executor(scale=1.0)
    scheduler = await bench.scheduler(executor.address, policy="edf-shed")
    router = await bench.router(scheduler)
    await router.run_all(bench.submit(1, tokens=30))  # so that steps have a time
    deadline = slo_pb2.DeadlineSlo(e2e_ms=60_000)
    await router.send(
        submits=[
            bench.submit(
                k, tokens=30_000, slo=slo_pb2.Slo(deadline=deadline, on_miss=m), estimate=exactly(30_000)
            )
            for k, m in ((2, DROP), (3, FINISH))
        ]
    )
    await router.until(lambda: 2 in router.ended)
    ended = router.ended[2]
    assert (ended.finish_reason, ended.failure.reason) == (EXPIRED, "SLO_UNATTAINABLE")
    assert "is due 60000 ms after the arrival" in ended.failure.message  # and was not past: it was forecast
    assert ended.failure.attainable_ms > 60_000
    assert 3 not in router.ended
    plan = await router.stub.GetPlan(scheduler_pb2.GetPlanRequest())
    assert dict(plan.shed) == {"hopeless": 1}
    assert [e.reason for e in plan.entries] == ["unattainable"]  # demoted, and served as there is room
    said = await router.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="request-2"))
    assert ("shed", "hopeless") in [(e.event, e.detail) for e in said.timeline]
    await router.send(cancels=[3])
    await router.until(lambda: 3 in router.ended)


async def test_tenants_are_owed_by_their_shares(bench):
    executor = await bench.executor(max_batch=2)
    scheduler = await bench.scheduler(executor.address, policy="fcfs", tenant_shares={"a": 3.0})
    router = await bench.router(scheduler)
    table = scheduler.loop.state.table
    await router.send(
        submits=[bench.submit(k, tokens=bench.ENDLESS, tenant="a", elapsed_ms=100.0) for k in (1, 2)]
        + [bench.submit(3, tokens=100, tenant="b")]
    )
    await router.until(lambda: len(router.ids.get(1, ())) > 200)
    served = scheduler.loop.state.tokens + 2 * 32
    said = await router.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="request-3"))
    behind = said.estimates["tenant_lag_tokens"]
    # A quarter of what the engine did, all of it for a. More was done until b's row was asked for.
    assert behind >= 0.25 * served * 0.5
    assert behind <= 0.25 * (scheduler.loop.state.tokens + 2 * 32)
    rows = table.rows_of([1, 3])
    scheduler.loop.state.tenants.tell(rows)
    assert table.tenant_lag_tokens[rows].sum() == pytest.approx(0.0)
    await router.send(cancels=[1, 2, 3])
    await router.until(lambda: len(router.ended) == 3)


@pytest.mark.parametrize(("resident", "how"), [(4, "paused"), (1, "evicted")])
async def test_preemptions_are_counted_by_what_they_cost(bench, resident, how):
    executor = await bench.executor(max_batch=1, max_resident=resident, scale=0.5)
    scheduler = await bench.scheduler(executor.address, policy="edf")
    router = await bench.router(scheduler)
    urgent, patient = (slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=ms)) for ms in (10_000, 1e9))
    await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS, slo=patient)])
    await router.until(lambda: len(router.ids.get(1, ())) > 3)
    await router.send(submits=[bench.submit(2, tokens=5, slo=urgent)])
    await router.until(lambda: 2 in router.ended)
    before = len(router.ids[1])
    await router.until(lambda: len(router.ids[1]) > before + 10)
    plan = await router.stub.GetPlan(scheduler_pb2.GetPlanRequest())
    assert plan.preempted[how] == plan.resumed[how] == 1
    said = await router.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="request-1"))
    events = [event.event for event in said.timeline]
    assert ("evicted" in events) is (how == "evicted")  # paused: its KV stayed
    await router.send(cancels=[1])
    await router.until(lambda: 1 in router.ended)
