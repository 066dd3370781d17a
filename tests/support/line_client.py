"""A careful gRPC client: checks every index, and goes on by Attach when its stream breaks.

`generate_held` keeps a request from ending before its test lets it: what must happen while requests run then does, on
a machine of any speed.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc

from paceline.common.v1.attempt_pb2 import SamplingParams
from paceline.common.v1.slo_pb2 import BestEffortSlo, Slo
from paceline.router.v1.generation_pb2 import Finished, GenerationSpec, Tokens
from paceline.router.v1.router_pb2 import (
    AttachRequest,
    AttachResponse,
    GenerateRequest,
    GenerateResponse,
    SessionCredits,
    SessionOpen,
    SessionRequest,
    SessionResponse,
    SessionSubmit,
)
from paceline.router.v1.router_pb2_grpc import RouterServiceStub

PATIENCE_S = 200.0
"""Longest wait for what takes seconds: it only ends a test that hangs. Processes begin slowly on a busy machine."""


def greedy(prompt: str, tokens: int, **fields: object) -> GenerationSpec:
    """A greedy request that runs to `tokens`, whatever the model says."""
    spec = GenerationSpec(
        text=prompt,
        max_tokens=tokens,
        sampling=SamplingParams(temperature=0, ignore_eos=True),
        slo=Slo(best_effort=BestEffortSlo()),
        streaming=True,
    )
    spec.MergeFrom(GenerationSpec(**fields))  # type: ignore[arg-type]
    return spec


@dataclass
class Generation:
    """What one client saw."""

    request_id: str = ""
    engine_id: str = ""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: Finished | None = None
    attaches: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    """Of a held request: may go on to its end."""

    def take(self, reply: GenerateResponse | AttachResponse) -> None:
        if reply.HasField("accepted"):
            self.request_id = reply.accepted.request_id
            self.engine_id = reply.accepted.engine_id
        elif reply.HasField("tokens"):
            tokens = reply.tokens
            assert tokens.first_index == len(self.ids), "a token is missing or came twice"
            assert len(tokens.token_ids) == len(tokens.text_lengths)
            assert sum(tokens.text_lengths) == len(tokens.text.encode())
            self.ids += tokens.token_ids
            self.text += tokens.text
        else:
            self.finished = reply.finished
        self.grown.set()

    def take_session(self, reply: SessionResponse) -> None:
        """The same, of a session with this request alone."""
        for accepted in reply.accepted:
            self.take(GenerateResponse(accepted=accepted.accepted))
        payload = reply.tokens.payload
        for first in reply.tokens.first_indices[:1]:
            count = sum(reply.tokens.counts)
            self.take(
                GenerateResponse(
                    tokens=Tokens(
                        first_index=first,
                        token_ids=struct.unpack(f"<{count}i", payload.token_ids),
                        text_lengths=struct.unpack(f"<{count}I", payload.text_lengths),
                        text=payload.text.decode(),
                    )
                )
            )
        for finished in reply.finished:
            self.take(GenerateResponse(finished=finished.finished))

    async def reached(self, tokens: int) -> None:
        """Wait for that many tokens, or the end."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ids) < tokens and self.finished is None:
                self.grown.clear()
                await self.grown.wait()


async def generate(target: str, spec: GenerationSpec, seen: Generation | None = None) -> Generation:
    """Stream one generation to its end."""
    seen = Generation() if seen is None else seen
    async with asyncio.timeout(PATIENCE_S), grpc.aio.insecure_channel(target) as channel:
        stub = RouterServiceStub(channel)
        try:
            async for reply in stub.Generate(GenerateRequest(spec=spec)):
                seen.take(reply)
        except grpc.aio.AioRpcError as error:
            if not seen.request_id or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
    while seen.finished is None:
        await _attach(target, seen)
    return seen


async def generate_held(target: str, spec: GenerationSpec, seen: Generation, at: int) -> None:
    """Stream one generation that stops at `at` tokens, for want of credit, until `seen.let_go` is set."""

    async def requests() -> AsyncIterator[SessionRequest]:
        yield SessionRequest(open=SessionOpen(client_id="held"))
        yield SessionRequest(submit=SessionSubmit(stream_id=1, spec=spec, token_limit=at))
        await seen.let_go.wait()
        yield SessionRequest(credits=SessionCredits(stream_ids=[1], token_limits=[spec.max_tokens]))
        await asyncio.Event().wait()  # the session stays open until its call is cancelled

    async with asyncio.timeout(PATIENCE_S), grpc.aio.insecure_channel(target) as channel:
        call = RouterServiceStub(channel).Session(requests())
        try:
            async for reply in call:
                seen.take_session(reply)
                if seen.finished is not None:
                    call.cancel()
                    break
        except grpc.aio.AioRpcError as error:
            if not seen.request_id or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
    while seen.finished is None:
        await _attach(target, seen)


async def _attach(target: str, seen: Generation) -> None:
    seen.attaches += 1
    async with asyncio.timeout(PATIENCE_S), grpc.aio.insecure_channel(target) as channel:
        call = RouterServiceStub(channel).Attach(
            AttachRequest(request_id=seen.request_id, from_index=len(seen.ids)), wait_for_ready=True
        )
        try:
            async for reply in call:
                seen.take(reply)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
