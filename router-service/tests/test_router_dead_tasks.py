"""Objectives out of reach: what clients hear, and what becomes of the rest of a task; the time of tasks dealt out."""

import asyncio

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import router_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_runtime.errors import ATTAINABLE_MS, Reason

DROP = slo_pb2.ON_MISS_DROP
EXPIRED = attempt_pb2.FINISH_REASON_EXPIRED
LENGTH = attempt_pb2.FINISH_REASON_LENGTH
E2E_MS = 600_000.0
"""Budget of a task that is not late, however slow the machine."""


def call_slo(on_miss=DROP, task_id="t", e2e_ms=0.0, **fields):
    return slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id=task_id, e2e_ms=e2e_ms, **fields), on_miss=on_miss)


async def warm(router, spec):
    """Let the scheduler measure its engine: without that nobody can say what is attainable."""
    await router.generate(spec(tokens=30))


async def test_a_dropped_request_ends_early_and_hears_what_was_attainable(line, spec, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    await warm(router, spec)
    session = await router.session()
    slo = slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=400), on_miss=DROP)
    dropped = await session.submit(endless(slo=slo))
    slo = slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=1), on_miss=slo_pb2.ON_MISS_FINISH)
    finished = await session.submit(spec(tokens=40, slo=slo))
    await session.ended(dropped, finished)
    assert (dropped.reason, dropped.finished.failure.reason) == (EXPIRED, "SLO_UNATTAINABLE")
    assert not dropped.finished.failure.retryable
    assert dropped.finished.failure.attainable_ms > 400
    assert "due 400 ms after the arrival" in dropped.finished.failure.message
    assert (
        f"{dropped.finished.failure.attainable_ms:.0f} ms would have been" in dropped.finished.failure.message
    )
    assert (finished.reason, finished.count) == (LENGTH, 40)
    assert not finished.finished.outcome.attained


async def test_a_dead_task_ends_its_calls_and_takes_no_more(line, spec, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    await warm(router, spec)
    await router.stub.BeginTask(router_pb2.BeginTaskRequest(task_id="t", e2e_ms=E2E_MS))
    session = await router.session()
    siblings = [await session.submit(endless(slo=call_slo(), request_id=f"sibling-{i}")) for i in range(2)]
    patient = await session.submit(
        spec(tokens=60, slo=call_slo(slo_pb2.ON_MISS_FINISH), request_id="patient")
    )
    await session.until(lambda: all(a.accepted is not None for a in (*siblings, patient)))
    # One call of it is given up by its scheduler, as a policy would.
    scheduler = line.schedulers["e0"].loop
    hopeless = next(a for a in scheduler.state.table if a.request_id == "sibling-0")
    view = scheduler.state.table.view(scheduler.state.engine.capacity, scheduler.state.fitter.model)
    scheduler.shedding.shed(view, (view.row_id == hopeless.row).nonzero()[0], scheduler.state.now_ms())
    await session.ended(*siblings, patient)
    assert [a.reason for a in siblings] == [EXPIRED, EXPIRED]
    first, second = (a.finished.failure for a in siblings)
    assert first.reason == second.reason == "SLO_UNATTAINABLE"
    assert "task 't'" in first.message
    assert "task 't' cannot be met any more: its call 'sibling-0' was given up" in second.message
    assert second.attainable_ms > 0
    assert (patient.reason, patient.count) == (LENGTH, 60)  # it asked to be finished

    refusal = await router.refused(spec(slo=call_slo()))
    assert refusal.reason is Reason.SLO_UNATTAINABLE
    assert not refusal.retryable
    assert "task 't'" in refusal.message
    assert float(refusal.metadata[ATTAINABLE_MS]) > 0
    late = await router.generate(spec(tokens=5, slo=call_slo(slo_pb2.ON_MISS_FINISH)))
    assert late.count == 5
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="t"))
    assert not end.attained
    assert end.calls == 4


async def test_a_call_that_comes_after_its_tasks_deadline_is_refused(line, spec):
    await line.engine("e0")
    router = await line.router()
    await router.generate(spec(tokens=3, slo=call_slo(slo_pb2.ON_MISS_FINISH, e2e_ms=50.0)))
    await asyncio.sleep(0.06)  # the deadline is by the clock
    refusal = await router.refused(spec(slo=call_slo(final=True)))
    assert refusal.reason is Reason.SLO_UNATTAINABLE
    assert "its deadline passed" in refusal.message
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="t"))
    assert not end.attained


async def test_the_scheduler_knows_call_and_task_deadline(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    await router.stub.BeginTask(router_pb2.BeginTaskRequest(task_id="t", e2e_ms=E2E_MS))
    call = await session.submit(endless(slo=call_slo(), request_id="a"))
    await session.until(lambda: call.count > 0)
    engine = next(iter(router.app.fleet))
    said = await engine.link.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="a"))
    assert 0 < said.estimates["task_call_left_ms"] <= said.estimates["task_left_ms"] + 1 <= E2E_MS + 1
    await session.cancel(call)
    await session.ended(call)
