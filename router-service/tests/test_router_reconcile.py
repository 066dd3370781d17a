"""What the router and its schedulers make of each other when they meet again late, empty-handed or confused."""

import asyncio
import socket

from paceline.common.v1 import attempt_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

LENGTH = attempt_pb2.FINISH_REASON_LENGTH


async def interrupted(line, spec):
    """A request whose router ends in the middle of it: what its client has."""
    router = await line.router(store=True, checkpoint_interval_ms=20.0)
    session = await router.session()
    # Without more credit it cannot end before its router does, however long that takes.
    before = await session.submit(spec(tokens=250, request_id="r"), token_limit=60)
    await session.until(lambda: before.count > 10)
    await line.stop(router.app)
    await session.closed()
    return before


async def test_a_request_that_waits_for_an_engine_is_adopted_once(line, spec):
    await line.engine("e0", time_scale=0.1)
    before = await interrupted(line, spec)
    router = await line.router(store=True, schedulers=(), scheduler_grace_s=0.2, wait=False)
    await line.until(lambda: router.app.adoption.settled.is_set())
    assert len(router.app.dispatcher.waiting) == 1
    router.app.fleet_control.dial(line.schedulers["e0"].address)
    after = await router.attach("r", before.count)
    assert len(router.app.ledger.find("r").attempts) == 1
    alone = await router.generate(spec(tokens=250))
    assert before.ids + after.ids == alone.ids
    assert before.text + after.text == alone.text
    await line.until(lambda: not line.executors["e0"].engine.live_table())


async def test_schedulers_that_announce_themselves_are_waited_for(line, spec):
    await line.engine("e0", time_scale=0.1)
    before = await interrupted(line, spec)
    router = await line.router(store=True, schedulers=(), wait=False)
    router.app.fleet_control.sweep()
    assert not router.app.fleet_control.answered.is_set()
    router.app.fleet_control.dial(line.schedulers["e0"].address)
    after = await router.attach("r", before.count)
    assert after.finished.attempts == 1
    assert before.count + len(after.ids) == 250


async def test_a_scheduler_that_comes_back_without_its_engine_loses_its_requests(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=200), token_limit=50)
    await session.until(lambda: answer.count > 5)
    await line.engine("e1")
    router.app.fleet_control.dial(line.schedulers["e1"].address)
    await line.until(lambda: len(router.app.fleet) == 2)
    lost = line.schedulers.pop("e0")
    link = router.app.fleet.get("e0").link
    await line.stop(lost)
    await line.until(lambda: not link.open)
    await line.executors.pop("e0").server.grpc.stop(0)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        config = {"listen": lost.address, "executor": f"127.0.0.1:{nobody.getsockname()[1]}"}
        config["server"] = {"drain_grace_s": 0.0}
        async with SchedulerApp(SchedulerConfig(**config)):
            await line.until(lambda: link.open)
            router.set(scheduler_grace_s=0.0)
            await session.credit(answer, 200)
            await session.ended(answer)
    assert answer.count == 200
    assert answer.finished.engine_id == "e1"


async def test_a_message_that_cannot_be_carried_out_costs_the_session_only(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=200), token_limit=50)
    await session.until(lambda: answer.count > 5)
    link = router.app.fleet.get("e0").link
    real, failed = link._events.on_update, asyncio.Event()

    def fail_once(link, update):
        failed.set()
        link._events.on_update = real
        raise KeyError("a defect")

    malformed = attempt_pb2.TokenBatch(payload=b"\xff\xff")
    real(link, scheduler_pb2.Update(tokens=[malformed]))
    link._events.on_update = fail_once
    async with asyncio.timeout(60):
        await failed.wait()
    await session.credit(answer, 200)
    await session.ended(answer)
    assert answer.count == 200
    assert answer.finished.attempts == 1


async def test_many_large_submits_travel_in_messages_of_a_bounded_size(line, spec):
    await line.engine("e0", max_batch=4, context_tokens=1_000_000, time_scale=0.01)
    router = await line.router()
    link = router.app.fleet.get("e0").link
    keys = list(range(1, 31))
    for key in keys:
        link._submits.append(
            scheduler_pb2.Submit(spec=attempt_pb2.AttemptSpec(attempt_key=key, text="x" * 900_000))
        )
    link._cancels.append(30)
    messages = []
    while link._submits or link._cancels:
        messages.append(link._take_commands())
    assert [s.spec.attempt_key for m in messages for s in m.submits] == keys
    assert max(m.ByteSize() for m in messages) < 4_000_000
    assert [list(m.cancels) for m in messages[:-1]] == [[]] * (len(messages) - 1)
    assert list(messages[-1].cancels) == [30]


async def test_a_second_scheduler_of_an_engine_takes_over_and_the_router_goes_on(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=200), token_limit=50)
    await session.until(lambda: answer.count > 5)
    newer = await line.scheduler("newer", line.executors["e0"].address)
    router.app.fleet_control.dial(newer.address)
    await session.credit(answer, 200)
    await session.ended(answer)
    assert answer.count == 200
    assert not router.app.fleet_control.fenced
