"""Plans: who runs, in which order, how far, and what pausing and evicting cost and do not cost."""

import pytest

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2

from .conftest import Connect, Start
from .peer import Peer, new_attempt

PAUSED = attempt_pb2.REQUEST_STATE_PAUSED
EVICTED = attempt_pb2.REQUEST_STATE_EVICTED


async def test_nothing_runs_without_a_plan(peer: Peer) -> None:
    await peer.add(1)
    await peer.add(2)
    await peer.plan(2)
    await peer.until_ended(2)
    assert 1 not in peer.ids
    assert 1 in peer.accepted


@pytest.mark.needs("steps")
async def test_the_order_is_kept_and_free_places_are_filled(peer: Peer) -> None:
    keys = [5, 3, 8, 1, 7, 2, 6, 4]
    await peer.send(adds=[new_attempt(key, f"prompt {key}", max_tokens=12) for key in sorted(keys)])
    await peer.plan(*keys, max_batch=2)
    await peer.until_ended(*keys)
    # Equal lengths: they end as they began, two at a time.
    assert peer.end_order == keys
    assert max(step.decode_batch for step in peer.steps) == 2
    assert {step.plan_id for step in peer.steps} == {1}, "one plan was enough"
    batches = [step.decode_batch for step in peer.steps if step.decode_batch]
    assert sum(batches) >= 8 * 11
    assert batches.count(2) >= len(batches) * 0.7, "freed places are filled at once"


@pytest.mark.needs("steps")
async def test_the_engines_own_batch_limit_holds(start: Start, connect: Connect) -> None:
    peer = await connect(await start(max_batch=3))
    await peer.run(*(new_attempt(key, f"prompt {key}") for key in range(1, 8)))
    assert max(step.decode_batch for step in peer.steps) == 3


async def test_unknown_and_ended_attempts_in_a_plan_are_skipped(peer: Peer) -> None:
    await peer.run(new_attempt(1))
    await peer.add(2)
    await peer.plan(99, 1, 2)
    await peer.until_ended(2)
    assert len(peer.output(2)) == 24


async def test_a_plan_may_name_an_attempt_before_it_comes(peer: Peer) -> None:
    await peer.plan(1)
    await peer.add(1)
    await peer.until_ended(1)


async def test_credit_bounds_an_attempt_and_nobody_else(peer: Peer) -> None:
    await peer.send(adds=[new_attempt(1, "one"), new_attempt(2, "two")])
    await peer.plan(1, 2, token_limits=[5, 0])
    await peer.until_ended(2)
    await peer.until_count(1, 5)
    assert len(peer.ids[1]) == 5
    await peer.plan(1, token_limits=[9])
    await peer.until_count(1, 9)
    await peer.until_state(1, PAUSED)
    assert len(peer.ids[1]) == 9
    await peer.plan(1)
    await peer.until_ended(1)
    assert len(peer.output(1)) == 24


@pytest.mark.needs("keep_kv")
async def test_pause_keeps_kv_and_the_answer(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=40))
    await peer.add(2, prompt, max_tokens=40)
    await peer.plan(2, token_limits=[15])
    await peer.until_count(2, 15)
    await peer.add(3, "somebody else")
    await peer.plan(3)
    await peer.until_ended(3)
    await peer.until_state(2, PAUSED)
    assert peer.kv.used_tokens >= 15
    assert peer.kv.resident == 1
    peer.steps.clear()
    await peer.plan(2)
    await peer.until_ended(2)
    assert peer.output(2) == peer.output(1)
    assert not any(step.prefill_tokens for step in peer.steps), "nothing was computed again"


@pytest.mark.needs("resume_equal")
async def test_evict_drops_kv_and_keeps_the_answer(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=40))
    await peer.add(2, prompt, max_tokens=40)
    await peer.plan(2, token_limits=[15])
    await peer.until_count(2, 15)
    await peer.plan(evict=[2])
    await peer.until_state(2, EVICTED)
    assert peer.kv.used_tokens == 0
    assert peer.kv.resident == 0
    assert peer.kv.live == 1
    await peer.plan(2)
    await peer.until_ended(2)
    assert peer.output(2) == peer.output(1)
    assert peer.text(2) == peer.text(1)


@pytest.mark.needs("keep_kv")
async def test_a_slot_needed_ahead_is_taken_and_reported(start: Start, connect: Connect, prompt: str) -> None:
    peer = await connect(await start(max_batch=1, max_resident=2))
    await peer.send(adds=[new_attempt(key, f"{key} {prompt}", max_tokens=20) for key in (1, 2, 3)])
    for key in (1, 2):
        await peer.plan(key, token_limits=[5])
        await peer.until_count(key, 5)
    await peer.plan(3, 1, token_limits=[5, 5])
    await peer.until_count(3, 5)
    await peer.until(lambda: bool(peer.deviations), "a deviation")
    # 2 is not listed, 1 is: 2 goes.
    assert [(row.attempt_key, row.reason) for row in peer.deviations] == [
        (2, executor_pb2.DEVIATION_REASON_NO_SLOT)
    ]
    await peer.plan(1, 2, 3)
    await peer.until_ended(1, 2, 3)
    fresh = await connect(await start())
    await fresh.run(*(new_attempt(key, f"{key} {prompt}", max_tokens=20) for key in (1, 2, 3)))
    for key in (1, 2, 3):
        assert peer.output(key) == fresh.output(key)


@pytest.mark.needs("prefill_budget")
async def test_prefill_keeps_to_the_budget(peer: Peer, prompt: str) -> None:
    chunk = peer.attached.capabilities.prefill_chunk_tokens
    await peer.send(adds=[new_attempt(key, [key] * 300) for key in (1, 2)])
    await peer.plan(1, 2, prefill_budget_tokens=chunk)
    await peer.until_ended(1, 2)
    per_step: dict[int, int] = {}
    for step in peer.steps:
        per_step[step.step] = per_step.get(step.step, 0) + sum(step.prefill_tokens)
    assert max(per_step.values()) <= chunk
    assert sum(per_step.values()) == 600
    for step in peer.steps:
        assert len(step.prefill_tokens) == len(step.prefill_context_tokens) == len(step.prefill_call_ms)
        assert all(context % chunk == 0 for context in step.prefill_context_tokens), "chunks are aligned"


@pytest.mark.needs("steps")
async def test_steps_say_what_they_did(peer: Peer, prompt: str) -> None:
    await peer.run(*(new_attempt(key, prompt, max_tokens=10) for key in (1, 2)))
    numbers = [step.step for step in peer.steps]
    assert numbers == sorted(numbers)
    assert all(step.step_ms >= 0 for step in peer.steps)
    decodes = [step for step in peer.steps if step.decode_batch]
    assert all(step.decode_ms > 0 for step in decodes)
    length = len(peer.accepted[1].prompt_ids) // 4
    for step in decodes:
        assert step.decode_context_tokens >= step.decode_batch * length


async def test_wrong_token_limits_end_the_stream_with_a_reason(peer: Peer) -> None:
    await peer.plan(1, 2, token_limits=[5])
    await peer.until(lambda: peer.error is not None, "an error")
    assert peer.error is not None
    assert "token_limits" in str(peer.error.details())
