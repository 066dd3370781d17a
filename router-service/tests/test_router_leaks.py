"""After many mixed requests nothing is left behind, anywhere."""

import asyncio
import gc
import random

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline.scheduler.v1 import scheduler_pb2


async def test_300_mixed_requests_with_random_cancels_leave_nothing(line, spec):
    for name in ("e0", "e1"):
        await line.engine(name, time_scale=0.02)
    router = await line.router(store=True, detach_ttl_s=0.2, window_tokens=64)
    rng = random.Random(4)
    sessions = [await router.session() for _ in range(3)]
    answers = []
    for i in range(300):
        fields = {"request_id": f"r{i}", "tokens": rng.randint(1, 120)}
        if rng.random() < 0.2:
            fields["slo"] = slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id=f"t{i % 7}", e2e_ms=600_000))
        if rng.random() < 0.1:
            fields["durability"] = generation_pb2.DURABILITY_SYNC
        if rng.random() < 0.1:
            fields["text"] = ""
        session = rng.choice(sessions[:2]) if i % 10 else sessions[2]
        limit = rng.choice([0, 0, 0, 5])
        answer = await session.submit(spec(**fields), token_limit=limit)
        answers.append((session, answer))
        if rng.random() < 0.3:
            victim_session, victim = rng.choice(answers)
            await victim_session.cancel(victim)
        if i % 50 == 25:
            await asyncio.sleep(0.05)
    await sessions[2].hang_up()  # its requests are detached, then cancelled
    for session, answer in answers:
        if session is not sessions[2] and answer.finished is None:
            await session.credit(answer, 0)
    mine = [a for s, a in answers if s is not sessions[2]]
    for session in sessions[:2]:
        await session.ended(*(a for s, a in answers if s is session))
    reasons = {a.reason for a in mine}
    assert attempt_pb2.FINISH_REASON_LENGTH in reasons
    assert attempt_pb2.FINISH_REASON_CANCELLED in reasons
    assert attempt_pb2.FINISH_REASON_REJECTED in reasons
    app = router.app
    await line.until(lambda: app.ledger.live_count == 0)
    await line.until(lambda: not any(line.executors[n].engine.live_table() for n in ("e0", "e1")))
    assert not app.ledger.attempts
    assert not app.dispatcher.waiting
    assert not len(app.fleet.table.in_flight)
    assert not len(app.fleet.table.residents)
    for engine in app.fleet:
        assert not engine.attempts
    assert not app.durability._pumps
    await line.until(lambda: not app.readers._detached)
    assert all(not r.outlets for r in app.ledger.all())
    for i in range(7):
        await router.stub.EndTask(router_pb2.EndTaskRequest(task_id=f"t{i}"))
    for engine in app.fleet:
        async with asyncio.timeout(60):
            while (await engine.link.stub.ListRequests(scheduler_pb2.ListRequestsRequest())).total:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the scheduler tells nobody


async def test_retention_is_bounded_by_count_bytes_and_time(line, spec):
    await line.engine("e0")
    router = await line.router(retain_requests=5)
    for i in range(9):
        await router.generate(spec(tokens=3, request_id=f"r{i}"))
    assert [r.request_id for r in router.app.ledger.all()] == [f"r{i}" for i in range(4, 9)]
    router = await line.router(router_id="other", retain_bytes=200)
    for i in range(4):
        await router.generate(spec(tokens=8, request_id=f"r{i}"))
    assert router.app.ledger.retained_bytes <= 200
    router = await line.router(router_id="third", retain_s=0.05)
    await router.generate(spec(tokens=3))
    await line.until(lambda: not list(router.app.ledger.all()))
    assert router.app.ledger.retained_bytes == 0


async def test_a_live_request_costs_less_than_20_kb(line, spec):
    import tracemalloc

    await line.engine("e0", max_batch=1, max_resident=1)
    router = await line.router()
    session = await router.session()
    first = [await session.submit(spec(f"p{i}", 400), token_limit=1) for i in range(20)]
    await session.until(lambda: all(a.accepted is not None for a in first))
    gc.collect()
    tracemalloc.start()
    try:
        more = [await session.submit(spec("x" * 500 + str(i), 400), token_limit=1) for i in range(100)]
        await session.until(lambda: all(a.accepted is not None for a in more))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Client, scheduler and executor share the process, so this bounds all four together.
    assert taken / 100 < 20_000
    for answer in first + more:
        await session.cancel(answer)
    await session.ended(*first, *more)
