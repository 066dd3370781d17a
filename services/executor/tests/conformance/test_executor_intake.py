"""What an executor takes in, and what it refuses with which words."""

import grpc
import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2, engine_pb2
from paceline.executor.v1 import executor_pb2
from paceline_executor.app import ExecutorApp

from .conftest import Connect, Start
from .peer import Peer, id_bytes, ids_of, new_attempt


async def test_capabilities_say_what_policies_need(peer: Peer, abilities: frozenset[str]) -> None:
    answer = await peer.stub.GetCapabilities(executor_pb2.GetCapabilitiesRequest())
    assert answer.identity == peer.attached.identity
    assert answer.identity.incarnation
    assert answer.identity.started_unix_ms > 1_600_000_000_000
    own = answer.capabilities
    assert own == peer.attached.capabilities
    assert own.max_batch == 8
    assert own.max_resident == 16
    assert own.max_context_tokens == 512
    assert own.kv_capacity_tokens >= 512
    declared = {
        "iteration": own.plan_granularity == engine_pb2.PLAN_GRANULARITY_ITERATION,
        "keep_kv": engine_pb2.PAUSE_MODE_KEEP_KV in own.pause_modes,
        "kv_transfer": own.kv_transfer,
        "exact_replay": attempt_pb2.REPLAY_MODE_EXACT in own.replay_modes,
    }
    assert {ability for ability, said in declared.items() if said} == abilities & declared.keys()
    assert attempt_pb2.REPLAY_MODE_FAST in own.replay_modes
    assert own.model
    assert own.model_hash
    assert own.build
    assert own.tokenizer_id


async def test_each_start_is_a_new_incarnation(start: Start, connect: Connect) -> None:
    first, second = await connect(await start()), await connect(await start())
    assert first.attached.identity.engine_id == second.attached.identity.engine_id
    assert first.attached.identity.incarnation != second.attached.identity.incarnation


async def test_acceptance_tells_the_ids_that_tokenize_gives(peer: Peer, prompt: str) -> None:
    ids = (await peer.stub.Tokenize(executor_pb2.TokenizeRequest(texts=[prompt, "", "x"]))).results
    await peer.run(new_attempt(1, prompt), new_attempt(2, ids_of(ids[0].ids)))
    assert peer.accepted[1].prompt_ids == peer.accepted[2].prompt_ids == ids[0].ids
    assert peer.output(1) == peer.output(2)
    assert len(ids_of(ids[2].ids)) >= 1


@pytest.mark.needs("breadth")
@pytest.mark.parametrize(
    "text",
    ["plain words", "naïve façade, 東京データ, Привет 🙂🚀", "tabs\tand\nlines\n\n", '{"a": [1, 2.5e-3]}'],
)
async def test_tokens_of_a_text_give_the_text_back(peer: Peer, text: str) -> None:
    result = (await peer.stub.Tokenize(executor_pb2.TokenizeRequest(texts=[text]))).results[0]
    ids = ids_of(result.ids)
    # Forced ids are output: asked for again, they come with their text.
    await peer.add(1, "x", forced=ids, max_tokens=len(ids) + 1, await_more_forced=True)
    published = await peer.republish(1, 0)
    assert [token for token, _ in published.values()] == ids
    assert "".join(piece for _, piece in published.values()) == text
    assert not peer.ids, "forced ids are not published"


@pytest.mark.needs("breadth")
async def test_tokenize_is_bounded(peer: Peer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.stub.Tokenize(executor_pb2.TokenizeRequest(texts=["x"] * 65))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


REFUSALS = {
    "prompt over the context": (new_attempt(1, "word " * 2000), "CONTEXT_LENGTH_EXCEEDED"),
    "ids over the context": (new_attempt(1, [5] * 512), "CONTEXT_LENGTH_EXCEEDED"),
    "megabytes of text": (new_attempt(1, "x" * 2_000_000), "CONTEXT_LENGTH_EXCEEDED"),
    "empty text": (new_attempt(1, ""), "EMPTY_PROMPT"),
    "no ids": (new_attempt(1, []), "EMPTY_PROMPT"),
    "no prompt at all": (new_attempt(1, None), "INVALID_PROMPT"),
    "id outside the vocabulary": (new_attempt(1, [5, 10_000_000]), "INVALID_TOKEN_ID"),
    "negative id": (new_attempt(1, [-1]), "INVALID_TOKEN_ID"),
    "forced id outside the vocabulary": (new_attempt(1, "x", forced=[10_000_000]), "INVALID_TOKEN_ID"),
    "no tokens wanted": (new_attempt(1, "x", max_tokens=0), "INVALID_MAX_TOKENS"),
    "negative temperature": (new_attempt(1, "x", sampling={"temperature": -1.0}), "INVALID_SAMPLING"),
    "top_p over 1": (new_attempt(1, "x", sampling={"top_p": 1.5}), "INVALID_SAMPLING"),
    "too many stop strings": (new_attempt(1, "x", sampling={"stop": ["s"] * 17}), "INVALID_SAMPLING"),
}


@pytest.mark.needs("breadth")
@pytest.mark.parametrize("case", REFUSALS)
async def test_refusals_name_their_reason(peer: Peer, case: str) -> None:
    add, reason = REFUSALS[case]
    await peer.send(adds=[add])
    await peer.until_ended(1)
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_REJECTED
    assert peer.ended[1].failure.reason == reason
    assert peer.ended[1].failure.message
    assert not peer.ended[1].failure.retryable
    assert 1 not in peer.accepted
    # And the engine goes on.
    await peer.run(new_attempt(2))
    assert len(peer.output(2)) == 24
    assert peer.kv.live == 0


@pytest.mark.needs("breadth")
async def test_cut_ids_are_refused(peer: Peer) -> None:
    add = new_attempt(1, [5])
    add.spec.token_ids = id_bytes([5, 6])[:-1]
    await peer.send(adds=[add])
    await peer.until_ended(1)
    assert peer.ended[1].failure.reason == "INVALID_TOKEN_ID"


async def test_answer_ends_where_the_context_does(peer: Peer) -> None:
    await peer.run(new_attempt(1, [5] * 500, max_tokens=10_000))
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_LENGTH
    assert peer.ended[1].output_tokens == len(peer.output(1)) == 12
    assert peer.ended[1].prompt_tokens == 500


async def test_a_repeated_add_repeats_the_acceptance_and_the_end(peer: Peer) -> None:
    await peer.run(new_attempt(1))
    answer = peer.output(1)
    peer.accepted.clear()
    peer.ended.clear()
    await peer.send(adds=[new_attempt(1)])
    await peer.until_ended(1)
    assert 1 in peer.accepted
    assert peer.output(1) == answer


async def test_prompt_ids_are_little_endian_int32(executor: ExecutorApp, peer: Peer) -> None:
    await peer.add(1, [1, 2, 200])
    await peer.until(lambda: 1 in peer.accepted)
    assert np.frombuffer(peer.accepted[1].prompt_ids, "<i4").tolist() == [1, 2, 200]
    assert executor.identity.engine_id == "cpu-0"
