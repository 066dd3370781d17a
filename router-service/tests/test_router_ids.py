"""Ids that are taken, and requests that end while they are still being admitted."""

import asyncio

import numpy as np

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_router.admission import Admission
from paceline_router.states import State
from paceline_runtime.errors import Reason
from paceline_store.store import Store


async def stored(line, request_id):
    store = await Store.open(f"sqlite+aiosqlite:///{line.folder / 'router.db'}")
    try:
        return await store.get_request(request_id)
    finally:
        await store.close()


async def test_a_duplicate_leaves_the_stored_request_as_it_is(line, spec):
    await line.engine("e0")
    router = await line.router(store=True, retain_requests=0)
    first = await router.generate(spec(tokens=20, request_id="twice"))
    await line.until(lambda: not router.app.durability._writer.buffered_rows)
    error = await router.refused(spec("other", tokens=5, request_id="twice"))
    assert error.reason is Reason.DUPLICATE_REQUEST
    await line.stop(router.app)
    kept = await stored(line, "twice")
    assert kept.request.state == State.FINISHED
    assert generation_pb2.Finished.FromString(kept.request.finished) == first.finished
    assert np.frombuffer(kept.tokens.token_ids, "<i4").tolist() == first.ids


async def test_a_cancel_that_comes_with_its_submit_counts(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = session.answers[1] = router.tape()
    batch = router_pb2.SessionBatch()
    batch.submits.add(stream_id=1, spec=endless(request_id="c"))
    batch.cancels.add(stream_id=1)
    await session.send(batch=batch)
    await session.ended(answer)
    assert answer.reason == attempt_pb2.FINISH_REASON_CANCELLED
    assert answer.count == 0
    assert router.app.ledger.live_count == 0


async def test_a_request_cancelled_during_admission_leaves_nothing_behind(line, spec, monkeypatch):
    await line.engine("e0")
    router = await line.router(store=True)
    asked, answer_it, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
    task_books = []

    async def slow(admission, request_id):
        task_books.append(admission._tasks)
        asked.set()
        await answer_it.wait()
        answered.set()
        return False

    monkeypatch.setattr(Admission, "_known_to_store", slow)
    session = await router.session()
    slo = slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id="t", e2e_ms=60_000))
    answer = await session.submit(spec(request_id="gone", slo=slo))
    async with asyncio.timeout(60):
        await asked.wait()
    await session.cancel(answer)
    await session.ended(answer)
    answer_it.set()
    async with asyncio.timeout(60):
        await answered.wait()
    await router.generate(spec(request_id="next"))
    await line.until(lambda: not router.app.durability._writer.buffered_rows)
    assert await stored(line, "gone") is None
    assert len(task_books[0]) == 0


class Late:
    """Hands on what a method is called with only when it is told to."""

    def __init__(self, monkeypatch, owner, name):
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        real = getattr(owner, name)

        async def late(*args):
            self.asked.set()
            await self.go.wait()
            return await real(*args)

        monkeypatch.setattr(owner, name, late)


async def test_an_adopted_request_keeps_its_id_from_one_that_is_being_admitted(line, spec, monkeypatch):
    """A front door that hands in its requests again is quicker than the scheduler's list of what lives there."""
    await line.engine("e0", time_scale=0.1)
    router = await line.router(store=True)
    first = await router.session()
    before = await first.submit(spec(tokens=300, request_id="same"), token_limit=60)
    await first.until(lambda: before.count > 3)
    router.app.readers.send_away()
    await line.stop(router.app)

    late = Late(monkeypatch, Admission, "_known_to_store")
    reborn = await line.router(store=True, wait=False, schedulers=())
    # The engine is known from a look at another scheduler, so that new requests come through the door.
    await line.engine("e1")
    reborn.app.fleet_control.dial(line.schedulers["e1"].address)
    await line.until(lambda: any(e.up for e in reborn.app.fleet))
    second = await reborn.session()
    again = await second.submit(spec(tokens=300, request_id="same"))
    async with asyncio.timeout(60):
        await late.asked.wait()
    reborn.app.fleet_control.dial(line.schedulers["e0"].address)
    await second.ended(again)
    assert again.finished.failure.reason == Reason.DUPLICATE_REQUEST
    late.go.set()
    whole = await reborn.attach("same")
    assert whole.count == 300
    assert whole.ids[: before.count] == before.ids
    assert whole.reason == attempt_pb2.FINISH_REASON_LENGTH
    await line.until(lambda: not line.executors["e0"].engine.live_table())
