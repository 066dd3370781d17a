"""A careful gRPC client: checks every index, and goes on by Attach when its stream breaks."""

import asyncio
from dataclasses import dataclass, field

import grpc

from paceline.common.v1.attempt_pb2 import SamplingParams
from paceline.common.v1.slo_pb2 import BestEffortSlo, Slo
from paceline.router.v1.generation_pb2 import Finished, GenerationSpec
from paceline.router.v1.router_pb2 import AttachRequest, AttachResponse, GenerateRequest, GenerateResponse
from paceline.router.v1.router_pb2_grpc import RouterServiceStub

PATIENCE_S = 90.0


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
