"""Ends: cancel in every state, release, drain, and nothing left behind."""

import asyncio

import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline_executor.app import ExecutorApp

from .conftest import Connect, Start
from .peer import PATIENCE_S, Peer, new_attempt

PAUSED = attempt_pb2.REQUEST_STATE_PAUSED
EVICTED = attempt_pb2.REQUEST_STATE_EVICTED


@pytest.mark.parametrize("state", ["queued", "running", "paused", "evicted", "awaiting", "prefilling"])
async def test_cancel_is_confirmed_in_every_state(peer: Peer, prompt: str, state: str) -> None:
    long = [3] * 480 if state == "prefilling" else prompt
    await peer.add(1, long, max_tokens=400, await_more_forced=state == "awaiting")
    await peer.until(lambda: 1 in peer.accepted)
    match state:
        case "running" | "prefilling":
            await peer.plan(1, prefill_budget_tokens=64)
            await peer.until(lambda: bool(peer.steps), "a step")
        case "paused" | "evicted":
            await peer.plan(1, token_limits=[5])
            await peer.until_state(1, PAUSED)
            if state == "evicted":
                await peer.plan(evict=[1])
                await peer.until_state(1, EVICTED)
        case "awaiting":
            await peer.plan(1)
    await peer.send(cancels=[1])
    await peer.until_ended(1)
    if state in ("queued", "paused", "evicted", "awaiting"):
        assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_CANCELLED
    assert peer.ended[1].output_tokens == len(peer.ids.get(1, {}))
    await peer.until(lambda: peer.kv.live == 0)
    assert peer.kv.used_tokens == 0
    assert peer.kv.resident == 0


async def test_cancel_and_release_of_the_unknown_are_harmless(peer: Peer) -> None:
    await peer.send(cancels=[5], releases=[6], republishes=[attempt_pb2.Republish(attempt_key=7)])
    await peer.run(new_attempt(1))
    await peer.send(cancels=[1])
    await peer.run(new_attempt(2))
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_LENGTH


async def test_release_forgets_and_only_the_ended(executor: ExecutorApp, connect: Connect) -> None:
    peer = await connect(executor)
    await peer.run(new_attempt(1), new_attempt(2))
    await peer.add(3)
    await peer.until(lambda: 3 in peer.accepted)
    await peer.send(releases=[1, 3])
    # A round trip, so that the release was carried out.
    await peer.republish(2, 0)
    await peer.break_stream()
    assert set((await connect(executor)).live()) == {2, 3}


async def test_drain_refuses_and_ends(executor: ExecutorApp, connect: Connect) -> None:
    peer = await connect(executor)
    await peer.send(adds=[new_attempt(1, "held back"), new_attempt(2, "runs")])
    await peer.plan(1, 2, token_limits=[3, 0])
    await peer.until_count(1, 3)
    answer = await peer.stub.Drain(executor_pb2.DrainRequest(timeout_ms=50))
    assert answer.completed + answer.cancelled <= 2
    assert answer.cancelled >= 1
    await peer.until_ended(1, 2)
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_CANCELLED
    await peer.add(3)
    await peer.until_ended(3)
    assert peer.ended[3].finish_reason == attempt_pb2.FINISH_REASON_REJECTED
    assert peer.ended[3].failure.reason == "DRAINING"
    assert peer.ended[3].failure.retryable


async def test_drain_waits_for_what_runs(executor: ExecutorApp, connect: Connect) -> None:
    peer = await connect(executor)
    await peer.send(adds=[new_attempt(key, f"prompt {key}") for key in (1, 2)])
    await peer.until(lambda: len(peer.accepted) == 2)
    drain = asyncio.ensure_future(peer.stub.Drain(executor_pb2.DrainRequest(timeout_ms=PATIENCE_S * 1e3)))
    await peer.plan(1, 2)
    await peer.until_ended(1, 2)
    answer = await asyncio.wait_for(drain, PATIENCE_S)
    assert answer.cancelled == 0


@pytest.mark.needs("many")
async def test_nothing_is_left_of_many_mixed_attempts(start: Start, connect: Connect, prompt: str) -> None:
    """200 attempts of all kinds, cancelled at random, on an engine with few slots and changing plans."""
    app = await start(max_batch=4, max_resident=6)
    peer = await connect(app)
    rng = np.random.default_rng(11)
    total, live = 200, set[int]()
    for key in range(1, total + 1):
        kind = key % 5
        fields: dict[str, object] = {"max_tokens": int(rng.integers(1, 40)), "ignore_eos": bool(kind)}
        if kind == 1:
            fields["forced"] = rng.integers(1, 200, int(rng.integers(1, 10))).tolist()
        if kind == 2:
            fields["await_more_forced"] = True
        if kind == 3:
            fields["sampling"] = {"temperature": 1.0, "stop": ["e"]}
        text = "" if key % 17 == 0 else f"{key} {prompt}"[: int(rng.integers(3, 200))]
        await peer.add(key, text, **fields)
        live.add(key)
        live -= peer.ended.keys()
        order = rng.permutation(sorted(live)).tolist()
        await peer.plan(*order, evict=order[-1:] if key % 7 == 0 else [])
        if rng.random() < 0.3:
            await peer.send(cancels=rng.choice(sorted(live), 1).tolist())
        if key % 20 == 0:
            await peer.until(lambda: key in peer.accepted or key in peer.ended)  # noqa: B023
    waiting = [key for key in range(1, total + 1) if key % 5 == 2]
    await peer.send(cancels=waiting)
    await peer.plan(*sorted(live))
    await peer.until_ended(*range(1, total + 1))
    use = app.engine.kv_use()
    assert (use.used_tokens, use.resident, use.live) == (0, 0, 0)
    assert (peer.kv.used_tokens, peer.kv.resident, peer.kv.live) == (0, 0, 0)
    for key, ended in peer.ended.items():
        forced = ended.output_tokens - len(peer.ids.get(key, {}))
        assert forced >= 0
        if key % 5 != 1:
            assert forced == 0
    reasons = {ended.finish_reason for ended in peer.ended.values()}
    assert {
        attempt_pb2.FINISH_REASON_LENGTH,
        attempt_pb2.FINISH_REASON_CANCELLED,
        attempt_pb2.FINISH_REASON_REJECTED,
    } <= reasons
    await peer.send(releases=list(peer.ended))
    await peer.run(new_attempt(1000))
    await peer.break_stream()
    assert set((await connect(app)).live()) == {1000}
