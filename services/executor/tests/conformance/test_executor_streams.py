"""Control streams: one at a time, the newest wins, and a broken one loses nothing for a while."""

import asyncio

import grpc
import pytest

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline_executor.app import ExecutorApp
from paceline_executor.config import SimulatedSection
from paceline_runtime.status import from_rpc_error

from .conftest import Connect, Start
from .peer import PATIENCE_S, Peer, new_attempt


async def refusal(peer: Peer, *requests: executor_pb2.RunRequest) -> grpc.aio.AioRpcError:
    """How a stream with these requests ends."""

    async def send() -> None:
        call = peer.stub.Run()
        for request in requests:
            await call.write(request)
        if not requests:
            await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(send(), PATIENCE_S)
    return refused.value


async def until_live(app: ExecutorApp, live: int) -> None:
    """Wait for what only the engine can tell while nobody is attached."""
    async with asyncio.timeout(PATIENCE_S):
        while app.engine.kv_use().live != live:
            await asyncio.to_thread(app.engine.events.wait, 0.02)


@pytest.mark.needs("breadth")
async def test_the_first_message_must_be_an_attach(executor: ExecutorApp) -> None:
    peer = Peer(executor.address)
    commands = executor_pb2.RunRequest(commands=executor_pb2.Commands())
    for requests in ((commands,), (executor_pb2.RunRequest(),), ()):
        assert (await refusal(peer, *requests)).code() is grpc.StatusCode.INVALID_ARGUMENT
    await peer.close()


@pytest.mark.needs("breadth")
async def test_silence_instead_of_an_attach_is_ended(start: Start) -> None:
    peer = Peer((await start(attach_timeout_s=0.05)).address)
    call = peer.stub.Run()
    assert await asyncio.wait_for(call.code(), PATIENCE_S) is grpc.StatusCode.DEADLINE_EXCEEDED
    await peer.close()


async def test_an_older_scheduler_is_refused(executor: ExecutorApp, connect: Connect) -> None:
    peer = await connect(executor, 10)
    late = Peer(executor.address)
    error = await refusal(late, executor_pb2.RunRequest(attach=executor_pb2.Attach(fencing_token=9)))
    assert from_rpc_error(error).reason == "FENCED"
    await late.close()
    await peer.run(new_attempt(1))
    # Also when the newer one is gone: it may come back.
    await peer.break_stream()
    again = Peer(executor.address)
    error = await refusal(again, executor_pb2.RunRequest(attach=executor_pb2.Attach(fencing_token=9)))
    assert from_rpc_error(error).reason == "FENCED"
    await again.close()


@pytest.mark.parametrize("token", [10, 11])
async def test_a_newer_stream_takes_over(
    executor: ExecutorApp, connect: Connect, prompt: str, token: int
) -> None:
    first = await connect(executor, 10)
    await first.add(1, prompt, max_tokens=40, context=b"from the first")
    await first.plan(1, token_limits=[12])
    await first.until_count(1, 12)
    second = await connect(executor, token)
    await first.until(lambda: first.error is not None, "the end of the older stream")
    assert first.error is not None
    assert from_rpc_error(first.error).reason == "FENCED"
    row = second.live()[1]
    assert row.context == b"from the first"
    assert row.output_tokens == 12
    await second.plan(1)
    await second.until_ended(1)
    assert sorted(second.ids[1]) == list(range(12, 40))


async def test_a_broken_stream_loses_nothing(
    executor: ExecutorApp, connect: Connect, prompt: str, abilities: frozenset[str]
) -> None:
    first = await connect(executor)
    await first.run(new_attempt(9, prompt, max_tokens=40))
    await first.send(
        adds=[
            new_attempt(1, prompt, max_tokens=40, context=b"\x00one", cache_salt="salt"),
            new_attempt(2, prompt, max_tokens=40, context=b"two"),
            new_attempt(3, "never planned", context=b"three"),
        ]
    )
    await first.plan(1, 2, token_limits=[12, 7])
    await first.until_count(1, 12)
    await first.until_count(2, 7)
    for key in (1, 2):
        await first.until_state(key, attempt_pb2.REQUEST_STATE_PAUSED)
    await first.break_stream()

    second = await connect(executor)
    live = second.live()
    assert set(live) == {1, 2, 3, 9}
    assert [live[key].context for key in (1, 2, 3)] == [b"\x00one", b"two", b"three"]
    assert live[1].spec.request_id == "request-1"
    assert live[1].spec.max_tokens == 40
    assert live[1].spec.sampling.ignore_eos
    assert live[1].spec.cache_salt == "salt"
    assert live[1].prompt_ids == first.accepted[1].prompt_ids
    assert (live[1].output_tokens, live[2].output_tokens, live[3].output_tokens) == (12, 7, 0)
    if "steps" in abilities:
        assert live[1].kv_tokens >= 12
    assert live[1].state == live[2].state == attempt_pb2.REQUEST_STATE_PAUSED
    assert live[3].state == attempt_pb2.REQUEST_STATE_QUEUED
    assert live[9].state == attempt_pb2.REQUEST_STATE_FINISHED
    assert live[9].ended.output_tokens == 40
    assert not live[1].HasField("ended")

    again = await second.republish(1, 0)
    assert [token for token, _ in again.values()] == first.output(1)
    await second.plan(1, 2)
    await second.until_ended(1, 2)
    if "keep_kv" in abilities:
        assert not any(step.prefill_tokens for step in second.steps), "KV was kept"
    if "resume_equal" in abilities:
        assert first.output(1) + second.output(1) == first.output(9)
        assert first.output(2) + second.output(2) == first.output(9)


async def test_the_engine_pauses_when_its_scheduler_is_gone(
    start: Start, connect: Connect, prompt: str, abilities: frozenset[str]
) -> None:
    # Slow enough that the attempts cannot end before the stream breaks.
    app = await start(context_tokens=4096, simulated=SimulatedSection(time_scale=0.05))
    peer = await connect(app)
    await peer.add(1, prompt, max_tokens=3000)
    await peer.plan(1)
    await peer.until_count(1, 3)
    await peer.break_stream()
    second = await connect(app)
    before = second.live()[1].output_tokens
    assert before < 3000
    # Nothing was planned by the second one: a later look shows the same place.
    await second.break_stream()
    third = await connect(app)
    row = third.live()[1]
    # One step may have been under way when the first stream broke; an abort takes up to two.
    assert before <= row.output_tokens <= before + (1 if "iteration" in abilities else 2)


async def test_orphans_are_dropped_after_their_time(start: Start, connect: Connect, prompt: str) -> None:
    app = await start(orphan_ttl_s=0.05)
    peer = await connect(app)
    await peer.add(1, prompt, max_tokens=40)
    await peer.add(2, prompt)
    await peer.plan(1, token_limits=[5])
    await peer.until_count(1, 5)
    await peer.break_stream()
    await until_live(app, 0)
    assert app.engine.kv_use().used_tokens == 0
    second = await connect(app)
    assert {row.ended.finish_reason for row in second.attached.live} == {attempt_pb2.FINISH_REASON_CANCELLED}


async def test_orphans_are_kept_for_who_comes_in_time(start: Start, connect: Connect, prompt: str) -> None:
    app = await start(orphan_ttl_s=PATIENCE_S)
    peer = await connect(app)
    await peer.add(1, prompt)
    await peer.until(lambda: 1 in peer.accepted)
    await peer.break_stream()
    second = await connect(app)
    await second.plan(1)
    await second.until_ended(1)
    assert len(second.output(1)) == 24


async def test_half_closing_ends_the_stream_well(executor: ExecutorApp, connect: Connect) -> None:
    peer = await connect(executor)
    await peer._call.done_writing()
    await peer.until(lambda: peer.error is not None, "the end of the stream")
    assert peer.error is not None
    assert peer.error.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("backend", ["tiny"], indirect=True)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine_ends_its_stream_not_its_attempts(
    executor: ExecutorApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await connect(executor)
    await peer.add(1, max_tokens=400)
    await peer.plan(1, token_limits=[3])
    await peer.until_count(1, 3)

    def fail(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(executor.engine, "_run_step", fail)
    await peer.plan(1)
    await peer.until(lambda: peer.error is not None, "the end of the stream")
    assert peer.error is not None
    assert from_rpc_error(peer.error).reason == "UNAVAILABLE"
    assert not peer.ended
    await asyncio.wait_for(executor.until_dead(), PATIENCE_S)
    assert not executor.server.health.ready
    late = Peer(executor.address)
    error = await refusal(late, executor_pb2.RunRequest(attach=executor_pb2.Attach(fencing_token=99)))
    assert from_rpc_error(error).reason == "UNAVAILABLE"
    await late.close()


@pytest.mark.parametrize("backend", ["simulated"], indirect=True)
async def test_a_scheduler_that_does_not_read_pauses_the_engine(start: Start, connect: Connect) -> None:
    app = await start(
        context_tokens=40_000, max_batch=16, stall_pause_s=0.05, simulated=SimulatedSection(time_scale=1e-4)
    )
    peer = await connect(app, read=False)
    keys = range(1, 17)
    await peer.send(adds=[new_attempt(key, f"prompt {key}", max_tokens=4_000) for key in keys])
    await peer.plan(*keys)
    async with asyncio.timeout(PATIENCE_S):
        while not app.counters["stall_pauses"]:
            await asyncio.to_thread(app.engine.events.wait, 0.02)
    paused_at = {row.spec.attempt_key: row.output_tokens for row in app.engine.live_table()}
    assert max(paused_at.values()) < 4_000, "it stopped before the end"
    peer.read()
    await peer.until_ended(*keys)
    # Nothing was lost and nothing doubled: `Peer` checks the order of every token.
    assert peer.counts() == dict.fromkeys(keys, 4_000)
