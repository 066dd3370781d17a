"""KV on the move: tickets, pulls, moves in two phases, and what happens when a pull fails."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2, executor_pb2_grpc
from paceline_executor.app import ExecutorApp
from paceline_runtime.status import from_rpc_error

from .conftest import Connect, Start
from .peer import PATIENCE_S, Peer, id_bytes, ids_of, new_attempt
from .test_executor_tokens import WITH_REAL_MODEL

OUT = 20


async def held_attempt(peer: Peer, key: int, prompt: str, max_tokens: int = 48) -> None:
    """An attempt with `OUT` tokens out, and no credit for more."""
    await peer.add(key, prompt, max_tokens=max_tokens)
    await peer.plan(key, token_limits=[OUT])
    await peer.until_count(key, OUT)
    await peer.until_state(key, attempt_pb2.REQUEST_STATE_PAUSED)


async def ticket_of(peer: Peer, key: int) -> attempt_pb2.KvTicket:
    peer.tickets.pop(key, None)
    await peer.send(tickets=[key])
    await peer.until(lambda: key in peer.tickets, "a ticket")
    assert not peer.tickets[key].HasField("failure"), peer.tickets[key].failure
    return peer.tickets[key].ticket


async def pull(peer: Peer, ticket: str, **changes: Any) -> tuple[executor_pb2.StateHeader, bytes]:
    own = peer.attached.capabilities
    request = executor_pb2.PullStateRequest(
        ticket=ticket,
        build=own.build,
        model_hash=own.model_hash,
        kv_type=own.kv_type,
        max_context_tokens=own.max_context_tokens,
    )
    request.MergeFrom(executor_pb2.PullStateRequest(**changes))
    parts = [part async for part in peer.stub.PullState(request)]
    chunks = [part.chunk for part in parts[1:]]
    assert all(len(chunk) <= 1 << 20 for chunk in chunks)
    return parts[0].header, b"".join(chunks)


@pytest.mark.needs("kv_transfer")
async def test_a_state_is_what_its_header_says(peer: Peer, prompt: str) -> None:
    await held_attempt(peer, 1, prompt)
    ticket = await ticket_of(peer, 1)
    header, data = await pull(peer, ticket.token)
    prompt_ids = ids_of(peer.accepted[1].prompt_ids)
    assert header.size_bytes == len(data)
    assert header.crc32 == zlib.crc32(data)
    assert header.positions == ticket.positions == len(prompt_ids) + OUT - 1
    assert header.prompt_tokens == len(prompt_ids)
    assert ids_of(header.token_ids) == (prompt_ids + peer.output(1))[: header.positions]
    # The attempt stays where it is.
    await peer.plan(1)
    await peer.until_ended(1)
    assert len(peer.output(1)) == 48


@pytest.mark.needs("kv_transfer")
async def test_a_ticket_is_good_once(peer: Peer, prompt: str) -> None:
    await held_attempt(peer, 1, prompt)
    ticket = await ticket_of(peer, 1)
    assert len(ticket.token) >= 20
    await pull(peer, ticket.token)
    for token in (ticket.token, "", "guess"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pull(peer, token)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.needs("kv_transfer")
@pytest.mark.parametrize(
    "change", [{"build": "other"}, {"model_hash": "other"}, {"kv_type": "other"}, {"max_context_tokens": 5}]
)
async def test_unequal_engines_are_refused(peer: Peer, prompt: str, change: dict[str, Any]) -> None:
    await held_attempt(peer, 1, prompt)
    ticket = await ticket_of(peer, 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await pull(peer, ticket.token, **change)
    assert from_rpc_error(refused.value).reason == "STATE_INCOMPATIBLE"


async def test_no_ticket_without_kv(peer: Peer) -> None:
    await peer.add(1)
    await peer.send(tickets=[1, 77])
    await peer.until(lambda: {1, 77} <= peer.tickets.keys(), "answers")
    assert peer.tickets[1].failure.reason == "NO_STATE"
    assert peer.tickets[77].failure.reason == "UNKNOWN_ATTEMPT"


@pytest.mark.needs("kv_transfer")
@WITH_REAL_MODEL
async def test_a_pulled_state_gives_the_same_answer(start: Start, connect: Connect, prompt: str) -> None:
    here, there = await connect(await start()), await connect(await start())
    await here.run(new_attempt(9, prompt, max_tokens=48))
    await held_attempt(here, 1, prompt)
    ticket = await ticket_of(here, 1)
    await there.run(new_attempt(2, prompt, max_tokens=48, forced=here.output(1), kv_ticket=ticket))
    assert here.output(1) + there.output(2) == here.output(9)
    assert here.text(1) + there.text(2) == here.text(9)
    assert not any(step.prefill_tokens for step in there.steps), "the prompt was not computed again"
    assert sum(step.decode_batch for step in there.steps) == 48 - OUT


@pytest.mark.needs("kv_transfer")
async def test_two_phase_move(start: Start, connect: Connect, prompt: str) -> None:
    here, there = await connect(await start()), await connect(await start())
    await here.run(new_attempt(9, prompt, max_tokens=48))
    await held_attempt(here, 1, prompt)
    ticket = await ticket_of(here, 1)
    out = here.output(1)
    await there.add(2, prompt, max_tokens=48, forced=out, kv_ticket=ticket, await_more_forced=True)
    await there.plan(2)
    # Meanwhile the attempt runs on here.
    await here.plan(1, token_limits=[OUT + 8])
    await here.until_count(1, OUT + 8)
    await there.until(lambda: 2 in there.accepted, "the landing")
    await here.send(cancels=[1])
    await here.until_ended(1)
    rest = here.output(1)[OUT:]
    await there.send(
        forced=[attempt_pb2.ForcedTokens(attempt_key=2, first_index=OUT, ids=id_bytes(rest), final=True)]
    )
    await there.until_ended(2)
    assert sorted(there.ids[2]) == list(range(len(here.output(1)), 48))
    assert here.output(1) + there.output(2) == here.output(9)
    assert here.text(1) + there.text(2) == here.text(9)


class FakeHolder(executor_pb2_grpc.ExecutorServiceServicer):
    """Stands in for an executor that answers PullState wrongly, which no real one does."""

    def __init__(self, parts: list[executor_pb2.PullStateResponse], hang: bool = False) -> None:
        self.parts = parts
        self.hang = hang
        self.asked = asyncio.Event()

    async def PullState(self, request: Any, context: Any) -> AsyncIterator[executor_pb2.PullStateResponse]:
        self.asked.set()
        for part in self.parts:
            yield part
        if self.hang:
            await asyncio.Event().wait()


FakeHolder.__abstractmethods__ = frozenset()


def header(data: bytes, **changes: Any) -> executor_pb2.PullStateResponse:
    fields = {"positions": 2, "token_ids": id_bytes([1, 2]), "prompt_tokens": 2, "size_bytes": len(data)}
    return executor_pb2.PullStateResponse(
        header=executor_pb2.StateHeader(**{**fields, "crc32": zlib.crc32(data), **changes})
    )


def chunk(data: bytes) -> executor_pb2.PullStateResponse:
    return executor_pb2.PullStateResponse(chunk=data)


BAD_STATES = {
    "CRC_MISMATCH": [header(b"bytes", crc32=1), chunk(b"bytes")],
    "PROTOCOL": [chunk(b"bytes")],
    "TOO_LARGE": [header(b"bytes", size_bytes=1 << 50)],
}


@pytest.fixture
async def serve_fake() -> AsyncIterator[Any]:
    servers = []

    async def serve(fake: FakeHolder) -> str:
        server = grpc.aio.server()
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        await server.stop(0)


async def replayed(app: ExecutorApp, peer: Peer, prompt: str, endpoint: str) -> None:
    """An attempt whose pull fails must give the same answer by replay."""
    await peer.run(new_attempt(9, prompt, max_tokens=40))
    ticket = attempt_pb2.KvTicket(endpoint=endpoint, token="t", positions=10, size_bytes=100)
    await peer.run(new_attempt(1, prompt, max_tokens=40, forced=peer.output(9)[:10], kv_ticket=ticket))
    assert peer.output(1) == peer.output(9)[10:]


@pytest.mark.needs("resume_equal")
@pytest.mark.parametrize("reason", BAD_STATES)
async def test_a_bad_state_is_counted_and_replayed(
    executor: ExecutorApp, peer: Peer, prompt: str, serve_fake: Any, reason: str
) -> None:
    await replayed(executor, peer, prompt, await serve_fake(FakeHolder(BAD_STATES[reason])))
    assert executor.counters[f"replayed:{reason}"] == 1


@pytest.mark.needs("resume_equal")
async def test_bytes_that_are_no_state_are_replayed(
    executor: ExecutorApp, peer: Peer, prompt: str, serve_fake: Any
) -> None:
    rubbish = np.random.default_rng(0).bytes(3000)
    await replayed(executor, peer, prompt, await serve_fake(FakeHolder([header(rubbish), chunk(rubbish)])))
    assert executor.counters["pulled"] == 1


@pytest.mark.needs("resume_equal")
async def test_a_holder_that_is_gone_is_replayed(start: Start, connect: Connect, prompt: str) -> None:
    app = await start(pull_timeout_s=2.0)
    await replayed(app, await connect(app), prompt, "127.0.0.1:1")
    assert sum(count for name, count in app.counters.items() if name.startswith("replayed:")) == 1


@pytest.mark.needs("resume_equal")
async def test_a_holder_that_hangs_is_given_up(
    start: Start, connect: Connect, prompt: str, serve_fake: Any
) -> None:
    app = await start(pull_timeout_s=0.1)
    await replayed(app, await connect(app), prompt, await serve_fake(FakeHolder([], hang=True)))
    assert app.counters["replayed:TIMEOUT"] == 1


async def test_waiting_for_a_state_can_be_seen_cancelled_and_extended(
    executor: ExecutorApp, connect: Connect, prompt: str, serve_fake: Any
) -> None:
    fake = FakeHolder([], hang=True)
    ticket = attempt_pb2.KvTicket(endpoint=await serve_fake(fake), token="t", positions=10, size_bytes=100)
    peer = await connect(executor)
    await peer.add(1, prompt, kv_ticket=ticket, context=b"waiting")
    await asyncio.wait_for(fake.asked.wait(), PATIENCE_S)
    await peer.break_stream()
    peer = await connect(executor)
    assert peer.live()[1].context == b"waiting"
    assert peer.live()[1].state == attempt_pb2.REQUEST_STATE_QUEUED
    await peer.send(
        forced=[attempt_pb2.ForcedTokens(attempt_key=1, first_index=0, ids=id_bytes([5]), final=True)],
        cancels=[1],
    )
    await peer.until_ended(1)
    assert peer.ended[1].finish_reason == attempt_pb2.FINISH_REASON_CANCELLED
    assert peer.kv.live == 0
