"""The fleet from outside: engines listed, drained, announced; decisions asked for; tasks scored."""

import asyncio
import contextlib

import grpc
import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import router_pb2
from paceline_router.tasks import TaskBook
from paceline_runtime.errors import Reason
from paceline_runtime.status import from_rpc_error

UP, DRAINING, DOWN = (
    router_pb2.ENGINE_STATE_UP,
    router_pb2.ENGINE_STATE_DRAINING,
    router_pb2.ENGINE_STATE_DOWN,
)


async def error_of(call):
    with pytest.raises(Exception) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_engines_are_listed_with_what_they_can_do(line, spec):
    await line.engine("e0")
    router = await line.router()
    await router.generate(spec())
    record = (await router.engines())["e0"]
    assert record.state == UP
    assert record.capabilities.model == "sim"
    assert record.scheduler_endpoint == line.schedulers["e0"].address
    assert record.incarnation
    await line.kill_executor("e0")
    await line.until(lambda: not router.app.fleet.get("e0").up)
    assert (await router.engines())["e0"].state == DOWN


async def test_a_drained_engine_takes_nothing_new_until_it_is_resumed(line, spec):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router(placement="round-robin")
    answer = await router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="e0"))
    assert answer.state == DRAINING
    assert {(await router.generate(spec())).accepted.engine_id for _ in range(4)} == {"e1"}
    answer = await router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="e0", resume=True))
    assert answer.state == UP
    assert {(await router.generate(spec())).accepted.engine_id for _ in range(4)} == {"e0", "e1"}


async def test_a_drain_with_a_timeout_moves_what_is_left(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router()
    session = await router.session()
    answers = [await session.submit(spec(f"p{i}", 300), 60) for i in range(4)]
    await session.until(lambda: all(a.count > 3 for a in answers))
    await line.engine("e1")
    router.app.fleet_control.dial(line.schedulers["e1"].address)
    await line.until(lambda: len(router.app.fleet) == 2)
    request = router_pb2.DrainEngineRequest(engine_id="e0", timeout_ms=50.0)
    drained = await router.stub.DrainEngine(request)
    assert (drained.state, drained.live) == (DRAINING, 0)
    for answer in answers:
        await session.credit(answer, 300)
    await session.ended(*answers)
    assert [a.count for a in answers] == [300] * 4
    assert {a.finished.engine_id for a in answers} == {"e1"}
    alone = await router.generate(spec("p0", 300))
    assert answers[0].ids == alone.ids


async def test_a_drain_goes_on_without_its_caller_and_past_the_time_of_other_calls(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router(server={"unary_timeout_s": 0.05})
    session = await router.session()
    answers = [await session.submit(spec(f"p{i}", 300, request_id=f"r{i}"), 60) for i in range(2)]
    await session.until(lambda: all(a.count > 3 for a in answers))
    await line.engine("e1", time_scale=0.5)
    router.app.fleet_control.dial(line.schedulers["e1"].address)
    await line.until(lambda: len(router.app.fleet) == 2)
    here, there = router.app.fleet.get("e0"), router.app.fleet.get("e1")
    drained = await router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="e0", timeout_ms=200.0))
    assert (drained.state, drained.live) == (DRAINING, 0)
    await line.until(lambda: len(there.attempts) == 2)
    await router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="e0", resume=True))
    assert here.move_at_ms is None
    left = router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="e1", timeout_ms=200.0))
    await line.until(lambda: there.move_at_ms is not None)
    left.cancel()
    await line.until(lambda: len(here.attempts) == 2)
    for answer in answers:
        await session.credit(answer, 300)
    await session.ended(*answers)
    assert [a.count for a in answers] == [300] * 2
    assert {a.finished.engine_id for a in answers} == {"e0"}


async def test_draining_an_unknown_engine_names_the_known(line):
    await line.engine("e0")
    router = await line.router()
    error = await error_of(router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="e9")))
    assert error.reason is Reason.NOT_FOUND
    assert "e0" in error.message


async def test_an_announced_scheduler_is_dialled(line, spec):
    router = await line.router()
    executor = await line.executor("e7")
    await line.scheduler("e7", executor.address, announce=[router.app.address])
    await line.until(lambda: router.app.fleet.get("e7") is not None)
    assert (await router.generate(spec())).accepted.engine_id == "e7"


async def test_names_are_resolved(line, spec):
    await line.engine("e0")
    port = line.schedulers["e0"].address.rpartition(":")[2]
    router = await line.router(schedulers=(), dns=(f"127.0.0.1:{port}",))
    assert (await router.generate(spec())).count == 16


async def test_an_engine_without_reports_is_left_out(line, spec):
    await line.engine("e0")
    router = await line.router(leave_out_after_ms=200.0)
    engine = router.app.fleet.get("e0")
    view = router.app.fleet.view(1e12)
    assert view.stale.all()
    placed = router.app.dispatcher._placer.decide
    from paceline_core import lengths
    from paceline_core.placement.view import RequestView

    request = RequestView("sim", 10, 10, lengths.cdf_from_probabilities([1.0] * lengths.K)[0])
    await line.stop(line.schedulers["e0"])
    await line.until(lambda: not engine.up)
    assert placed(request).engine is None


async def test_route_decides_and_runs_nothing(line, spec):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router()
    asked = router_pb2.RouteSpec(request_id="d", prompt_tokens=100, exclude_engine_ids=["e0"])
    decision = (await router.stub.Route(router_pb2.RouteRequest(spec=asked))).decision
    assert decision.engine_id == "e1"
    assert decision.executor_endpoint == line.executors["e1"].address
    assert decision.predicted_e2e_ms > 0
    assert router.app.ledger.live_count == 0
    asked.exclude_engine_ids.append("e1")
    decision = (await router.stub.Route(router_pb2.RouteRequest(spec=asked))).decision
    assert decision.failure.reason == Reason.NO_ENGINE
    assert not decision.engine_id


async def test_explain_tells_alternatives_and_what_happened(line, endless):
    for name in ("e0", "e1"):
        await line.engine(name, time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(endless(request_id="why"))
    await session.until(lambda: answer.count > 3)
    said = await router.stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id="why"))
    assert said.request.state == attempt_pb2.REQUEST_STATE_RUNNING
    placement = said.placements[0]
    assert placement.policy == "least-predicted"
    assert {s.engine_id for s in placement.scores} == {"e0", "e1"}
    assert placement.engine_id == min(placement.scores, key=lambda s: s.score).engine_id
    assert placement.length_p50 > 0
    names = [event.event for event in said.events]
    assert names.index("placed") < names.index("accepted") < names.index("first_token")
    assert any(name.startswith("scheduler.") for name in names)
    assert said.scheduler_notes


async def test_lists_are_paged_newest_first_and_filtered(line, spec):
    await line.engine("e0")
    router = await line.router()
    for i in range(5):
        await router.generate(spec(tokens=2, request_id=f"r{i}", tenant="even" if i % 2 == 0 else "odd"))
    seen, token = [], ""
    while True:
        page = await router.stub.ListRequests(router_pb2.ListRequestsRequest(limit=2, page_token=token))
        seen += [record.request_id for record in page.requests]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["r4", "r3", "r2", "r1", "r0"]
    odd = await router.stub.ListRequests(router_pb2.ListRequestsRequest(tenant="odd"))
    assert {record.request_id for record in odd.requests} == {"r1", "r3"}
    live = await router.stub.ListRequests(router_pb2.ListRequestsRequest(live_only=True))
    assert not live.requests
    error = await error_of(router.stub.ListRequests(router_pb2.ListRequestsRequest(page_token="?")))
    assert error.reason is Reason.INVALID_ARGUMENT


def task_slo(task_id, **fields):
    return slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id=task_id, **fields))


async def test_a_task_is_attained_when_all_its_calls_are_in_time(line, spec):
    await line.engine("e0")
    router = await line.router()
    task = await router.stub.BeginTask(router_pb2.BeginTaskRequest(e2e_ms=600_000, app="agent"))
    first = await router.generate(spec(slo=task_slo(task.task_id), request_id="c1"))
    second = await router.generate(spec(slo=task_slo(task.task_id, parent_request_ids=["c1"])))
    assert first.finished.outcome.attained
    assert first.accepted.slo.task.e2e_ms == 600_000
    assert second.accepted.slo.task.parent_request_ids == ["c1"]
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id=task.task_id))
    assert (end.attained, end.calls) == (True, 2)
    assert 0 < end.elapsed_ms < 600_000
    again = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id=task.task_id))
    assert again == end


async def test_a_late_task_is_missed_and_a_first_call_begins_one(line, spec):
    await line.engine("e0", time_scale=0.2)
    router = await line.router()
    answer = await router.generate(spec(tokens=50, slo=task_slo("late", e2e_ms=1.0, final=True)))
    assert not answer.finished.outcome.attained
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="late"))
    assert (end.attained, end.calls) == (False, 1)


async def test_cancelling_a_task_cancels_its_calls(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    calls = [await session.submit(endless(slo=task_slo("t", e2e_ms=1e6))) for _ in range(3)]
    await session.until(lambda: all(a.accepted is not None for a in calls))
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="t", cancelled=True))
    assert not end.attained
    await session.ended(*calls)
    assert {a.reason for a in calls} == {attempt_pb2.FINISH_REASON_CANCELLED}


async def test_an_idle_task_ends_by_itself(line, monkeypatch):
    expire = TaskBook.expire
    monkeypatch.setattr(
        TaskBook, "expire", lambda book: None
    )  # its time does not come before the test says so
    router = await line.router(task_idle_ttl_s=0.1)
    await router.stub.BeginTask(router_pb2.BeginTaskRequest(task_id="idle"))
    begin = router_pb2.BeginTaskRequest(task_id="idle")
    assert (await error_of(router.stub.BeginTask(begin))).reason is Reason.DUPLICATE_REQUEST
    monkeypatch.setattr(TaskBook, "expire", expire)
    async with asyncio.timeout(60):
        while True:  # once it has ended by itself, its id is free again
            with contextlib.suppress(grpc.RpcError):
                await router.stub.BeginTask(begin)
                break
    assert (
        await error_of(router.stub.EndTask(router_pb2.EndTaskRequest(task_id="x")))
    ).reason is Reason.NOT_FOUND


async def test_only_operators_change_the_fleet(line, spec):
    await line.engine("e0")
    tokens = [{"token": name, "tenant": name} for name in ("alice", "boss")]
    router = await line.router(auth={"tokens": tokens}, operators=("boss",))
    alice, boss = router.caller("alice"), router.caller("boss")
    await alice.generate(spec(request_id="hers"))
    drain = router_pb2.DrainEngineRequest(engine_id="e0")
    announce = router_pb2.AnnounceRequest(scheduler_endpoint="127.0.0.1:1")
    assert (await error_of(alice.stub.DrainEngine(drain))).reason is Reason.PERMISSION_DENIED
    assert (await error_of(alice.fleet_stub.Announce(announce))).reason is Reason.PERMISSION_DENIED
    assert len(router.app.fleet_control.links) == 1
    assert (await boss.stub.DrainEngine(drain)).state == router_pb2.ENGINE_STATE_DRAINING
    assert (await boss.record("hers")).tenant == "alice"
