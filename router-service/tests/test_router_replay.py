"""Lost engines, schedulers and attempts: replays that no client can tell from an uninterrupted run."""

from hypothesis import given
from hypothesis import strategies as st

from paceline.common.v1 import attempt_pb2
from paceline_router.replay import Loss, judge
from paceline_runtime.errors import Reason

LENGTH = attempt_pb2.FINISH_REASON_LENGTH
FAILED = attempt_pb2.FINISH_REASON_FAILED
ENDLESS_WINDOW = 1_000_000
"""Tokens: no pause, however slowly the client reads."""


async def test_streams_complete_token_for_token_when_their_engine_dies(line, spec):
    await line.engine("e0", time_scale=1.0)
    await line.engine("e1")
    router = await line.router()
    session = await router.session()
    await router.app.fleet_control.drain(drain("e1"))
    # Without more credit none can end before its engine dies, however long that takes.
    answers = [await session.submit(spec(f"p{i}", 150, request_id=f"r{i}"), 100) for i in range(8)]
    await session.until(lambda: all(a.count > 5 for a in answers))
    await router.app.fleet_control.drain(drain("e1", resume=True))
    await line.kill_executor("e0")
    for answer in answers:
        await session.credit(answer, 150)
    await session.ended(*answers)
    assert [a.reason for a in answers] == [LENGTH] * 8
    assert {a.finished.engine_id for a in answers} == {"e1"}
    assert {a.finished.attempts for a in answers} == {2}
    alone = [await session.submit(spec(f"p{i}", 150)) for i in range(8)]
    await session.ended(*alone)
    assert [(a.ids, a.text) for a in answers] == [(a.ids, a.text) for a in alone]
    record = await router.record("r0")
    assert [a.engine_id for a in record.attempts] == ["e0", "e1"]
    assert record.attempts[1].from_index > 5


async def test_a_request_that_is_in_flight_at_two_crashes_fails_and_the_others_go_on(line, spec, endless):
    await line.engine("e0", time_scale=1.0)
    await line.engine("e1", time_scale=1.0)
    router = await line.router(window_tokens=ENDLESS_WINDOW)
    session = await router.session()
    await router.app.fleet_control.drain(drain("e1"))
    suspect = await session.submit(endless(request_id="suspect"))
    await session.until(lambda: suspect.count > 5)
    await router.app.fleet_control.drain(drain("e1", resume=True))
    line.hold("e1")  # so that it has not got past the crash when this one dies, too
    await line.kill_executor("e0")
    live = router.app.ledger.find("suspect")
    await line.until(lambda: live.attempt is not None and live.attempt.number == 2 and live.attempt.accepted)
    assert live.attempt.isolate_until == live.attempt.from_index + 16
    await line.engine("e2")
    router.app.fleet_control.dial(line.schedulers["e2"].address)
    await line.until(lambda: len(router.app.fleet) == 3)
    innocent = await session.submit(spec(tokens=60))
    await line.kill_executor("e1")
    await session.ended(suspect, innocent)
    assert suspect.reason == FAILED
    assert suspect.finished.failure.reason == Reason.ENGINE_LOST
    assert not suspect.finished.failure.retryable
    assert suspect.finished.attempts == 2
    assert innocent.count == 60


async def test_what_waits_in_the_queue_is_no_suspect(line, spec):
    executor = await line.executor("e0", time_scale=2.0, max_batch=1, max_resident=1)
    await line.scheduler("e0", executor.address, policy="fcfs")  # so that the short one behind waits
    router = await line.router(window_tokens=ENDLESS_WINDOW)
    session = await router.session()
    running = await session.submit(spec(tokens=1000, request_id="running"))
    await session.until(lambda: running.count > 0)
    line.hold("e0")  # so that it is in the middle of it when its engine dies
    queued = await session.submit(spec(tokens=20, request_id="queued"))
    await session.until(lambda: queued.accepted is not None)
    assert running.finished is None
    await line.engine("e1", time_scale=0.05)
    router.app.fleet_control.dial(line.schedulers["e1"].address)
    await line.until(lambda: len(router.app.fleet) == 2)
    await line.kill_executor("e0")
    await session.ended(queued, running)
    assert router.app.ledger.find("running").crashes == 1
    assert router.app.ledger.find("queued").crashes == 0
    assert (running.count, queued.count) == (1000, 20)


async def test_the_same_engine_is_welcome_in_its_next_life(line, spec):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=200, request_id="r"), token_limit=100)
    await session.until(lambda: answer.count > 5)
    address = line.executors["e0"].address
    await line.kill_executor("e0")
    await line.until(lambda: len(router.app.dispatcher.waiting) == 1)
    assert answer.finished is None
    await line.executor("e0", address)
    await session.credit(answer, 200)
    await session.ended(answer)
    assert answer.count == 200
    attempts = (await router.record("r")).attempts
    assert [a.engine_id for a in attempts] == ["e0", "e0"]
    assert attempts[0].incarnation != attempts[1].incarnation


async def test_accepted_work_waits_for_an_engine_no_longer_than_it_may(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(endless(request_id="r", max_wait_ms=600_000.0))
    await session.until(lambda: answer.count > 5)
    # The wait for its first engine counts, too, and is not to end it.
    router.app.ledger.find("r").max_wait_ms = 50.0
    await line.kill_executor("e0")
    await session.ended(answer)
    assert answer.reason == attempt_pb2.FINISH_REASON_EXPIRED
    assert answer.finished.failure.reason == Reason.NO_ENGINE


async def test_a_restarted_scheduler_takes_over_and_nothing_is_replayed(line, spec):
    await line.engine("e0", time_scale=0.5)
    router = await line.router()
    session = await router.session()
    answers = [await session.submit(spec(f"p{i}", 200, request_id=f"r{i}"), 60) for i in range(4)]
    await session.until(lambda: all(a.count > 5 for a in answers))
    address = line.schedulers["e0"].address
    await line.stop(line.schedulers["e0"])
    for answer in answers:
        await session.credit(answer, 200)
    await line.scheduler("e0", line.executors["e0"].address, listen=address)
    await session.ended(*answers)
    assert [a.count for a in answers] == [200] * 4
    assert {a.finished.attempts for a in answers} == {1}


async def test_a_scheduler_that_stays_away_loses_its_requests_to_others(line, spec):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=200), token_limit=100)
    await session.until(lambda: answer.count > 5)
    await line.engine("e1")
    router.app.fleet_control.dial(line.schedulers["e1"].address)
    await line.until(lambda: len(router.app.fleet) == 2)
    await line.stop(line.schedulers["e0"])
    router.set(scheduler_grace_s=0.1)
    await session.credit(answer, 200)
    await session.ended(answer)
    assert answer.count == 200
    assert answer.finished.engine_id == "e1"
    alone = await router.generate(spec(tokens=200))
    assert answer.ids == alone.ids


@given(
    st.booleans(),
    st.integers(0, 100),
    st.integers(1, 5),
    st.integers(0, 1),
    st.integers(0, 120),
    st.integers(1, 4),
)
def test_verdicts_keep_the_rules(in_flight, next_index, attempts, crashes, isolate_until, max_attempts):
    loss = Loss(in_flight, next_index, attempts, crashes, isolate_until)
    verdict = judge(loss, max_attempts=max_attempts, isolate_tokens=16)
    alone_past_it = 0 < isolate_until <= next_index
    assert verdict.crashes == (0 if alone_past_it else crashes) + in_flight
    if verdict.crashes >= 2:
        assert not verdict.replay
        assert verdict.reason is Reason.ENGINE_LOST
        assert not verdict.retryable
    elif attempts >= max_attempts:
        assert not verdict.replay
        assert verdict.reason is Reason.ATTEMPTS_EXHAUSTED
    else:
        assert verdict.replay
        if in_flight:
            assert verdict.isolate_until == next_index + 16
        elif verdict.isolate_until:
            assert verdict.isolate_until == isolate_until > next_index


async def test_attempts_are_bounded(line, spec):
    await line.engine("e0", time_scale=1.0)
    router = await line.router(max_attempts=1)
    session = await router.session()
    paused = await session.submit(spec(tokens=500), token_limit=3)
    await session.until(lambda: paused.count == 3)
    await line.until(lambda: router.app.fleet.get("e0").load.running == 0)
    await line.kill_executor("e0")
    await session.ended(paused)
    assert paused.finished.failure.reason == Reason.ATTEMPTS_EXHAUSTED
    assert paused.finished.attempts == 1


def drain(engine_id, **fields):
    from paceline.router.v1 import router_pb2

    return router_pb2.DrainEngineRequest(engine_id=engine_id, **fields)
