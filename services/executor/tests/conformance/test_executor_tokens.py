"""Tokens and text: each index once, pieces that add up, the same answer however often and wherever it is made."""

import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2

from .conftest import Connect, Start
from .peer import Peer, id_bytes, new_attempt

WITH_REAL_MODEL = pytest.mark.parametrize(
    "backend", ["simulated", "tiny", pytest.param("smollm2", marks=pytest.mark.real_model)], indirect=True
)


async def test_every_index_comes_once_and_the_end_counts_them(peer: Peer, prompt: str) -> None:
    await peer.run(*(new_attempt(key, f"{key}: {prompt}", max_tokens=10 + key) for key in range(1, 6)))
    for key in range(1, 6):
        # `Peer` refuses doubled and unordered indices.
        assert sorted(peer.ids[key]) == list(range(10 + key))
        assert peer.ended[key].output_tokens == 10 + key
        assert peer.ended[key].finish_reason == attempt_pb2.FINISH_REASON_LENGTH
    assert peer.kv.used_tokens == 0
    assert peer.kv.live == 0


async def test_republished_pieces_are_the_published_ones(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=64))
    for first in (0, 1, 17, 63):
        again = await peer.republish(1, first)
        assert [token for token, _ in again.values()] == peer.output(1)[first:]
        assert [again[index][1] for index in again] == [peer.pieces[1][index] for index in range(first, 64)]


async def test_republish_also_repeats_the_end(peer: Peer) -> None:
    await peer.run(new_attempt(1))
    peer.ended.clear()
    await peer.republish(1, 0)
    await peer.until_ended(1)


async def test_text_is_the_text_of_the_ids(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=200))
    # The same ids, forced into another attempt, go through the engine's text code from the start.
    await peer.add(2, "another prompt", forced=peer.output(1), max_tokens=201, await_more_forced=True)
    again = await peer.republish(2, 0)
    text = "".join(piece for _, piece in again.values())
    # The last piece of a finished answer also carries what was held back.
    assert peer.text(1).startswith(text)
    assert peer.text(1)[len(text) :] in ("", "\N{REPLACEMENT CHARACTER}")
    assert len(text) > 50


async def test_stop_string_ends_before_it(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=120))
    whole = peer.text(1)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    await peer.run(new_attempt(2, prompt, max_tokens=120, sampling={"stop": ["\x00never", stop]}))
    assert peer.text(2) == whole[: whole.index(stop)]
    assert peer.ended[2].finish_reason == attempt_pb2.FINISH_REASON_STOP_STRING
    assert peer.ended[2].stop_string == stop
    assert peer.output(2) == peer.output(1)[: len(peer.output(2))]


async def test_a_possible_stop_is_held_back_and_then_released(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=60))
    whole = peer.text(1)
    near_miss = whole[20:24] + "\x00"
    await peer.run(new_attempt(2, prompt, max_tokens=60, sampling={"stop": [near_miss]}))
    assert peer.text(2) == whole
    assert peer.output(2) == peer.output(1)


async def test_stop_token_id_ends_with_it(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=80))
    answer = peer.output(1)
    stop = answer[40]
    await peer.run(new_attempt(2, prompt, max_tokens=80, sampling={"stop_token_ids": [stop]}))
    assert peer.output(2) == answer[: answer.index(stop) + 1]
    assert peer.ended[2].finish_reason == attempt_pb2.FINISH_REASON_STOP


async def test_equal_seeds_draw_equal_tokens(peer: Peer, prompt: str) -> None:
    hot = {"temperature": 1.0, "top_p": 0.95}
    first, second, other = (new_attempt(key, prompt, max_tokens=60, sampling=hot) for key in (1, 2, 3))
    other.spec.sampling.seed = 8
    await peer.run(first)
    await peer.run(second, other)
    assert peer.output(1) == peer.output(2)
    assert peer.output(1) != peer.output(3)


@pytest.mark.needs("resume_equal")
@pytest.mark.parametrize("out", [1, 7, 40])
async def test_exact_replay_goes_on_with_the_same_tokens(peer: Peer, prompt: str, out: int) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=64))
    answer, pieces = peer.output(1), peer.pieces[1]
    replay = new_attempt(2, prompt, max_tokens=64, forced=answer[:out], replay=attempt_pb2.REPLAY_MODE_EXACT)
    await peer.run(replay)
    assert sorted(peer.ids[2]) == list(range(out, 64)), "forced ids are not published"
    assert peer.output(2) == answer[out:]
    assert peer.pieces[2] == {index: pieces[index] for index in range(out, 64)}
    assert peer.ended[2].output_tokens == 64


async def test_fast_replay_takes_the_ids_over(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=40))
    forced = peer.output(1)[:30]
    peer.steps.clear()
    await peer.run(new_attempt(2, prompt, max_tokens=40, forced=forced, replay=attempt_pb2.REPLAY_MODE_FAST))
    assert sorted(peer.ids[2]) == list(range(30, 40))
    decodes = sum(step.decode_batch for step in peer.steps)
    assert decodes <= 10, "forced ids were prefilled, not decoded"


async def test_replay_of_a_finished_answer_ends_at_once(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=20))
    await peer.add(2, prompt, max_tokens=20, forced=peer.output(1))
    await peer.until_ended(2)
    assert peer.ended[2].finish_reason == attempt_pb2.FINISH_REASON_LENGTH
    assert 2 not in peer.ids


@pytest.mark.needs("resume_equal")
async def test_awaited_ids_are_waited_for(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=50))
    answer = peer.output(1)
    await peer.add(2, prompt, max_tokens=50, forced=answer[:10], await_more_forced=True)
    # Another attempt runs to its end meanwhile: the waiting one had its chance to go on by mistake.
    await peer.send(adds=[new_attempt(3, prompt, max_tokens=50)])
    await peer.plan(2, 3)
    await peer.until_ended(3)
    assert 2 not in peer.ids
    await peer.send(
        forced=[
            attempt_pb2.ForcedTokens(attempt_key=2, first_index=10, ids=id_bytes(answer[10:15])),
            # Overlaps are checked and dropped.
            attempt_pb2.ForcedTokens(attempt_key=2, first_index=12, ids=id_bytes(answer[12:20]), final=True),
        ]
    )
    await peer.until_ended(2)
    assert sorted(peer.ids[2]) == list(range(20, 50))
    assert peer.output(2) == answer[20:]


async def test_final_without_ids_sets_a_waiting_attempt_going(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt))
    await peer.add(2, prompt, await_more_forced=True)
    await peer.plan(2)
    await peer.send(forced=[attempt_pb2.ForcedTokens(attempt_key=2, first_index=0, final=True)])
    await peer.until_ended(2)
    assert peer.output(2) == peer.output(1)


@pytest.mark.needs("resume_equal")
async def test_forced_ids_that_are_said_again_change_nothing(peer: Peer, prompt: str) -> None:
    await peer.run(new_attempt(1, prompt, max_tokens=50))
    answer = peer.output(1)
    await peer.add(2, prompt, max_tokens=50, forced=answer[:10], await_more_forced=True)
    parts = [
        attempt_pb2.ForcedTokens(attempt_key=2, first_index=10, ids=id_bytes(answer[10:15])),
        attempt_pb2.ForcedTokens(attempt_key=2, first_index=15, ids=id_bytes(answer[15:20]), final=True),
    ]
    await peer.send(forced=[*parts, *parts])
    await peer.plan(2, token_limits=[30])
    await peer.until_count(2, 10)
    await peer.send(forced=parts)
    await peer.plan(2)
    await peer.until_ended(2)
    assert sorted(peer.ids[2]) == list(range(20, 50))
    assert peer.output(2) == answer[20:]


@pytest.mark.needs("breadth")
@pytest.mark.parametrize("wrong", ["gap", "contradiction", "not awaited"])
async def test_forced_ids_that_cannot_be_fail_the_attempt(peer: Peer, prompt: str, wrong: str) -> None:
    await peer.add(1, prompt, forced=[5, 6], await_more_forced=wrong != "not awaited")
    first, ids = (5, [7]) if wrong == "gap" else (0, [6, 6, 7])
    await peer.send(forced=[attempt_pb2.ForcedTokens(attempt_key=1, first_index=first, ids=id_bytes(ids))])
    await peer.until_ended(1)
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_FAILED
    assert peer.ended[1].failure.reason == "FORCED_IDS_MISMATCH"


@pytest.mark.needs("resume_equal")
async def test_the_schedule_does_not_change_an_answer(start: Start, connect: Connect, prompt: str) -> None:
    count, length = 8, 30
    keys = range(1, count + 1)
    prompts = [f"{key}. {prompt}"[: 40 + 31 * key] for key in keys]
    alone = await connect(await start(max_batch=1, max_resident=1))
    together = await connect(await start())
    adds = [new_attempt(key, text, max_tokens=length) for key, text in enumerate(prompts, 1)]
    await alone.run(*adds)
    rng = np.random.default_rng(3)
    await together.send(adds=adds)
    target = dict.fromkeys(keys, 0)
    while len(together.ended) < count:
        order = [key for key in rng.permutation(keys).tolist() if key not in together.ended]
        order = order[: int(rng.integers(1, count + 1))]
        evict = [key for key in rng.permutation(keys)[:1].tolist() if key not in order]
        for key in order:
            target[key] = min(length, target[key] + int(rng.integers(1, 12)))
        limits = [0 if target[key] == length else target[key] for key in order]
        await together.plan(
            *order, token_limits=limits, evict=evict, max_batch=int(rng.integers(1, count + 1))
        )
        for key in order:
            await together.until_count(key, target[key])
        await together.until_ended(*(key for key in keys if target[key] == length))
    for key in keys:
        assert together.output(key) == alone.output(key)
        assert together.text(key) == alone.text(key)
