"""llama.cpp's own server behind the executor. The whole suite cannot run on it: its streams leave out the ids of tokens
that end inside a character, which a random model makes all the time, so answers are not those of an engine alone.
"""

from pathlib import Path

import pytest

from paceline.common.v1 import attempt_pb2
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig

from .peer import Peer, new_attempt


@pytest.fixture
async def peer(llama_server_url: str, tiny_model_path: Path):
    """A scheduler attached to an executor before the server."""
    config = ExecutorConfig.model_validate(
        {
            "listen": "127.0.0.1:0",
            "backend": "remote",
            "model_path": str(tiny_model_path),
            "remote": {"url": llama_server_url, "dialect": "llama-server", "reserve_tokens": 16},
            "max_batch": 4,
            "context_tokens": 512,
        }
    )
    async with ExecutorApp(ExecutorServiceConfig(executor=config)) as app:
        peer = await Peer(app.address).attach()
        yield peer
        await peer.close()


async def test_answers_end_and_their_tokens_come_in_order(peer: Peer) -> None:
    hot = {"temperature": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.1}
    await peer.run(
        new_attempt(1, "Tell me a story. ", max_tokens=24),
        new_attempt(2, "And another one. ", max_tokens=24, sampling=hot),
        new_attempt(3, "A last one then. ", max_tokens=24, cache_salt="own"),
    )
    for key in (1, 2, 3):
        # `Peer` refuses doubled and unordered indices.
        assert peer.ended[key].finish_reason in (
            attempt_pb2.FINISH_REASON_LENGTH,
            attempt_pb2.FINISH_REASON_STOP,
        )
        assert peer.ended[key].output_tokens == len(peer.output(key)) > 0


async def test_a_cancel_ends_a_stream(peer: Peer) -> None:
    await peer.add(1, "Once upon a time. ", max_tokens=400)
    await peer.plan(1)
    await peer.until_count(1, 3)
    await peer.send(cancels=[1])
    await peer.until_ended(1)
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_CANCELLED
