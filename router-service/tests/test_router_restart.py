"""A router that dies and comes back: adoption from schedulers first, then from the store."""

import asyncio

import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_runtime.errors import PacelineError, Reason

LENGTH = attempt_pb2.FINISH_REASON_LENGTH
SYNC = generation_pb2.DURABILITY_SYNC


@pytest.mark.parametrize("store", [True, False], ids=["sqlite", "no store"])
async def test_requests_are_adopted_from_schedulers_and_continue_by_attach(line, spec, store):
    await line.engine("e0", time_scale=0.1)
    router = await line.router(store=store)
    session = await router.session()
    # Without more credit none can end before its router does, however long that takes.
    before = [await session.submit(spec(f"p{i}", 150, request_id=f"r{i}"), 60) for i in range(6)]
    await session.until(lambda: all(a.count > 5 for a in before))
    await line.stop(router.app)
    await session.closed()
    router = await line.router(store=store, wait=False)
    session = await router.session()
    after = [await session.attach(f"r{i}", a.count) for i, a in enumerate(before)]
    await session.ended(*after)
    assert [a.reason for a in after] == [LENGTH] * 6
    assert {a.finished.attempts for a in after} == {1}
    alone = [await session.submit(spec(f"p{i}", 150)) for i in range(6)]
    await session.ended(*alone)
    for one, two, whole in zip(before, after, alone, strict=True):
        assert one.ids + two.ids == whole.ids
        assert one.text + two.text == whole.text
    assert after[0].accepted.request_id == "r0"


async def test_what_no_scheduler_knows_is_replayed_from_the_store(line, spec):
    await line.engine("e0", time_scale=1.0)
    router = await line.router(store=True, checkpoint_interval_ms=20.0)
    session = await router.session()
    before = await session.submit(spec(tokens=150, request_id="r"), token_limit=40)
    await session.until(lambda: before.count > 20)
    request = router.app.ledger.find("r")
    await line.until(lambda: request.checkpointed > 10)
    await line.stop(router.app)
    await session.closed()
    await line.kill_executor("e0")
    await line.stop(line.schedulers.pop("e0"))
    await line.engine("e1", time_scale=0.1)
    router = await line.router(store=True, wait=False)
    after = await router.attach("r", before.count)
    alone = await router.generate(spec(tokens=150))
    assert before.ids + after.ids == alone.ids
    assert before.text + after.text == alone.text
    record = await router.record("r")
    assert record.attempts[-1].number == 2
    assert record.attempts[-1].from_index > 10


async def test_an_ended_request_is_read_from_the_store_after_a_restart(line, spec):
    await line.engine("e0")
    router = await line.router(store=True)
    whole = await router.generate(spec(tokens=40, request_id="old", app="tests"))
    await line.stop(router.app)
    router = await line.router(store=True)
    tail = await router.attach("old", 10)
    assert tail.ids == whole.ids[10:]
    assert whole.text.endswith(tail.text)
    assert tail.finished == whole.finished
    record = await router.record("old")
    assert record.state == attempt_pb2.REQUEST_STATE_FINISHED
    assert record.app == "tests"
    assert [a.engine_id for a in record.attempts] == ["e0"]
    listed = await router.stub.ListRequests(router_pb2.ListRequestsRequest())
    assert [r.request_id for r in listed.requests] == ["old"]
    assert (await router.refused(spec(request_id="old"))).reason is Reason.DUPLICATE_REQUEST


async def test_adopted_requests_that_nobody_wants_are_cancelled(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    before = await session.submit(endless())
    await session.until(lambda: before.count > 5)
    await line.stop(router.app)
    router = await line.router(detach_ttl_s=0.3, wait=False)
    await line.until(lambda: router.app.ledger.find(before.accepted.request_id) is not None)
    request = router.app.ledger.find(before.accepted.request_id)
    await line.until(lambda: request.ended)
    assert request.state.name == "CANCELLED"
    await line.until(lambda: not line.executors["e0"].engine.live_table())


async def test_an_older_life_is_fenced_off(line, spec):
    await line.engine("e0", time_scale=1.0)
    old = await line.router(store=True)
    new = await line.router(store=True)
    await line.until(lambda: old.app.fleet_control.fenced)
    assert (await new.generate(spec())).count == 16
    assert (await old.refused(spec())).reason is Reason.NO_ENGINE


async def test_sync_requests_survive_router_and_engine_at_once(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router(store=True)
    session = await router.session()
    before = await session.submit(spec(tokens=120, request_id="s", durability=SYNC), token_limit=60)
    await session.until(lambda: before.count > 10)
    assert before.accepted.durability == SYNC
    released = router.app.ledger.find("s").released
    await line.stop(router.app)
    await session.closed()
    await line.kill_executor("e0")
    await line.stop(line.schedulers.pop("e0"))
    await line.engine("e1", time_scale=0.1)
    router = await line.router(store=True, wait=False)
    request = None
    after = await router.attach("s", before.count)
    request = router.app.ledger.find("s")
    assert request.attempts[0].from_index >= released
    alone = await router.generate(spec(tokens=120))
    assert before.ids + after.ids == alone.ids


async def test_attach_waits_for_adoption_and_then_says_not_found(line, spec):
    await line.engine("e0")
    router = await line.router(store=True, schedulers=("127.0.0.1:1",), wait=False)
    asked = asyncio.create_task(router.attach("never"))
    await line.until(lambda: router.app.server.in_flight == 1)
    assert not router.app.adoption.settled.is_set()
    router.app.fleet_control.answered.set()  # as if its scheduler had said that nothing lives there
    with pytest.raises(PacelineError) as caught:
        await asked
    assert caught.value.reason is Reason.NOT_FOUND
    assert router.app.adoption.settled.is_set()


async def test_a_task_stays_open_over_a_restart(line, spec):
    await line.engine("e0", time_scale=0.1)
    router = await line.router(store=True)
    await router.stub.BeginTask(router_pb2.BeginTaskRequest(task_id="t", e2e_ms=600_000))
    slo = slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id="t"))
    await router.generate(spec(tokens=3, slo=slo))
    session = await router.session()
    running = await session.submit(spec(tokens=150, slo=slo, request_id="second"), token_limit=60)
    await session.until(lambda: running.count > 5)
    await line.stop(router.app)
    await session.closed()
    router = await line.router(store=True, wait=False)
    await router.attach("second", running.count)
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="t"))
    assert end.attained
    assert end.calls == 2
    assert end.elapsed_ms > 0


async def test_a_front_door_sees_the_requests_of_those_it_speaks_for(line, spec):
    await line.engine("e0")
    tokens = [{"token": name, "tenant": name} for name in ("gateway", "alice", "bob")]
    router = await line.router(auth={"tokens": tokens}, front_doors=("gateway",))
    gateway, alice, bob = (router.caller(name) for name in ("gateway", "alice", "bob"))
    whole = await gateway.generate(spec(tokens=5, request_id="r", tenant="alice"))
    for caller in (gateway, alice):
        assert (await caller.attach("r", 0)).ids == whole.ids
        assert (await caller.record("r")).tenant == "alice"
    with pytest.raises(PacelineError) as hidden:
        await bob.attach("r", 0)
    assert hidden.value.reason is Reason.NOT_FOUND
