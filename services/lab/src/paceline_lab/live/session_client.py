"""Many calls over one gRPC session: what a heavy back end does."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import grpc

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_lab.live.client import CallResult, CallSpec, slo_message
from paceline_runtime.channel import channel

_MAX_PENDING = 65_536


class SessionClient:
    """One multiplexed session with a router. Not for use from several event loops."""

    def __init__(self, router: str, *, client_id: str = "paceline-live") -> None:
        self._channel = channel(router)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)
        self._client_id = client_id
        self._commands: asyncio.Queue[router_pb2.SessionRequest] = asyncio.Queue(_MAX_PENDING)
        self._streams: dict[int, tuple[CallResult, asyncio.Event]] = {}
        self._next = 1
        self._reader: asyncio.Task[None] | None = None
        self.messages_received = 0
        """Session messages so far: tokens per message tells how well they are batched."""

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read(), name="session reader")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, spec: CallSpec, result: CallResult) -> None:
        """Make one call; see Client."""
        stream_id, self._next = self._next, self._next + 1
        ended = asyncio.Event()
        self._streams[stream_id] = (result, ended)
        submit = router_pb2.SessionSubmit(stream_id=stream_id, spec=generation_spec(spec))
        try:
            await self._commands.put(router_pb2.SessionRequest(submit=submit))
            await ended.wait()
        except asyncio.CancelledError:
            cancel = router_pb2.SessionRequest(cancel=router_pb2.SessionCancel(stream_id=stream_id))
            if not self._commands.full():
                self._commands.put_nowait(cancel)
            raise
        finally:
            self._streams.pop(stream_id, None)

    async def close(self) -> None:
        """Send what is queued, then close."""
        if self._reader is not None:
            # Every call has ended or was cancelled: what is left to send are cancellations.
            await asyncio.wait(
                {self._reader, asyncio.create_task(self._sent())}, timeout=1.0, return_when="FIRST_COMPLETED"
            )
            self._reader.cancel()
            await asyncio.wait([self._reader])
            self._reader = None
        await self._channel.close()

    async def _sent(self) -> None:
        await self._commands.join()

    async def _read(self) -> None:
        session = self._stub.Session(self._requests())
        try:
            async for message in session:
                self._take(message, time.perf_counter())
            self._fail_all("the session was closed by the router")
        except grpc.aio.AioRpcError as error:
            self._fail_all(f"{error.code().name}: {error.details()}")
        finally:
            session.cancel()

    async def _requests(self) -> AsyncIterator[router_pb2.SessionRequest]:
        yield router_pb2.SessionRequest(open=router_pb2.SessionOpen(client_id=self._client_id))
        while True:
            command = await self._commands.get()
            yield command
            self._commands.task_done()  # asked for the next one: this one is on its way

    def _take(self, message: router_pb2.SessionResponse, now_s: float) -> None:
        self.messages_received += 1
        for row in message.accepted:
            if (entry := self._streams.get(row.stream_id)) is not None:
                entry[0].accepted_s = now_s
                entry[0].prompt_tokens = row.accepted.prompt_tokens
                entry[0].engine_id = row.accepted.engine_id
        if message.HasField("tokens"):
            self._take_tokens(message.tokens, now_s)
        for ended in message.finished:
            if (entry := self._streams.get(ended.stream_id)) is not None:
                finish(entry[0], ended.finished, now_s)
                entry[1].set()

    def _take_tokens(self, tokens: router_pb2.SessionTokens, now_s: float) -> None:
        lengths = memoryview(tokens.payload.text_lengths).cast("I")
        text, offset, row_start = tokens.payload.text, 0, 0
        for stream_id, count in zip(tokens.stream_ids, tokens.counts, strict=True):
            size = sum(lengths[row_start : row_start + count])
            entry = self._streams.get(stream_id)
            if entry is not None:
                entry[0].token_s.extend([now_s] * count)
                if size:
                    entry[0].text.append(text[offset : offset + size].decode())
            offset += size
            row_start += count

    def _fail_all(self, why: str) -> None:
        for result, ended in self._streams.values():
            result.error = why
            ended.set()


def finish(result: CallResult, finished: generation_pb2.Finished, now_s: float) -> None:
    """Note the end of a call."""
    name = attempt_pb2.FinishReason.Name(finished.finish_reason)
    result.finish = name.removeprefix("FINISH_REASON_").lower()
    result.ended_s = now_s
    result.prompt_tokens = finished.prompt_tokens or result.prompt_tokens
    result.engine_id = finished.engine_id or result.engine_id
    result.attempts = max(1, finished.attempts)
    if finished.HasField("failure"):
        result.error = f"{finished.failure.reason}: {finished.failure.message}"


def generation_spec(spec: CallSpec) -> generation_pb2.GenerationSpec:
    """A call on the wire: greedy, streamed."""
    message = generation_pb2.GenerationSpec(
        request_id=spec.request_id,
        max_tokens=spec.max_tokens,
        streaming=True,
        app=spec.app,
        on_disconnect=generation_pb2.ON_DISCONNECT_CANCEL,
    )
    if spec.token_ids:
        message.token_ids = spec.token_ids
    else:
        message.messages.messages.extend(
            generation_pb2.Message(role=turn.role, content=turn.content) for turn in spec.messages
        )
    message.sampling.ignore_eos = spec.ignore_eos
    if spec.slo is not None:
        message.slo.CopyFrom(slo_message(spec.slo, stage=spec.stage, parents=spec.parents))
    return message
