"""A careful client: one session, opened again whenever it breaks; each of its streams goes on from its index."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_lab.bench.faults.work import Behaviour, Call
from paceline_runtime.channel import channel
from paceline_runtime.errors import Reason

log = logging.getLogger(__name__)

_MAX_PENDING = 65_536
_REDIAL_S = 0.1
_AGAIN_S = 0.25
_SLOW_GRANT = 8
_SLOW_PAUSE_S = (0.02, 0.3)
_REJECTED = attempt_pb2.FINISH_REASON_REJECTED

_Commands = asyncio.Queue[router_pb2.SessionRequest | None]
"""None: the session is over."""


@dataclass(slots=True)
class _Stream:
    """A call on the present session."""

    call: Call
    attached: bool
    heard: bool = False
    """The router has said something on it."""


class CarefulClient:
    """Reads many calls on one session. `on_change` is called whenever one of them has got on."""

    def __init__(self, router: str, on_change: Callable[[], None]) -> None:
        self._router = router
        self._on_change = on_change
        self._commands: _Commands = asyncio.Queue(_MAX_PENDING)
        self._streams: dict[int, _Stream] = {}
        self._calls: dict[Call, int] = {}
        self._next = 1
        self._open = False
        self._session: Any = None
        self._timers: set[asyncio.TimerHandle] = set()
        self.breaks = 0
        """Times that a session broke, or could not be opened."""

    def begin(self, call: Call) -> None:
        """Take a call over, until its end."""
        self._calls[call] = 0
        if self._open:
            self._resume(call)

    def drop(self, call: Call, problem: str) -> None:
        """Give a call up."""
        self._end(call, problem)

    def release(self) -> None:
        """Let the held ones read on."""
        for call, stream_id in self._calls.items():
            if call.behaviour is Behaviour.HELD and call.token_limit:
                call.token_limit = 0
                self._grant(stream_id, 0)

    def cut(self) -> None:
        """Break the session off."""
        if self._session is not None:
            self._session.cancel()

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        try:
            while True:
                await self._one_session()
                self._streams.clear()
                self.breaks += 1
                await asyncio.sleep(_REDIAL_S)
        finally:
            for timer in self._timers:
                timer.cancel()

    async def _one_session(self) -> None:
        commands = self._commands = asyncio.Queue(_MAX_PENDING)
        async with channel(self._router) as connection:
            session = self._session = router_pb2_grpc.RouterServiceStub(connection).Session(
                self._requests(commands)
            )
            self._open = True
            for call in list(self._calls):
                self._resume(call)
            try:
                async for message in session:
                    self._take(message)
            except grpc.aio.AioRpcError as error:
                log.debug("a session broke", extra={"code": error.code().name, "reason": error.details()})
            except asyncio.CancelledError:
                # Of the session, by `cut`; of the whole client it goes on.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
            finally:
                session.cancel()
                self._session = None
                self._open = False
                _end_of(commands)

    async def _requests(self, commands: _Commands) -> AsyncIterator[router_pb2.SessionRequest]:
        yield router_pb2.SessionRequest(open=router_pb2.SessionOpen(client_id="paceline-faults"))
        while (command := await commands.get()) is not None:
            yield command

    def _resume(self, call: Call) -> None:
        """Hand a call in, or go on with it where it is."""
        if call not in self._calls or not self._open:
            return
        stream_id, self._next = self._next, self._next + 1
        self._calls[call] = stream_id
        self._streams[stream_id] = _Stream(call, call.sent)
        if call.sent:
            attach = router_pb2.SessionAttach(
                stream_id=stream_id,
                request_id=call.request_id,
                from_index=call.count,
                token_limit=call.token_limit,
            )
            self._send(router_pb2.SessionRequest(attach=attach))
            if call.cancelled:
                self._cancel(stream_id)
        else:
            call.sent = True
            submit = router_pb2.SessionSubmit(
                stream_id=stream_id, spec=call.spec, token_limit=call.token_limit
            )
            self._send(router_pb2.SessionRequest(submit=submit))

    def _take(self, message: router_pb2.SessionResponse) -> None:
        for row in message.accepted:
            if (stream := self._heard(row.stream_id)) is not None:
                stream.call.accepted = True
        if message.HasField("tokens"):
            self._take_tokens(message.tokens)
        for ended in message.finished:
            if (stream := self._heard(ended.stream_id)) is not None:
                del self._streams[ended.stream_id]
                self._finish(stream.call, stream.attached, ended.finished)
        self._on_change()

    def _heard(self, stream_id: int) -> _Stream | None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.heard:
            stream.heard = True
            stream.call.attaches += stream.attached
        return stream

    def _take_tokens(self, tokens: router_pb2.SessionTokens) -> None:
        ids = memoryview(tokens.payload.token_ids).cast("i")
        lengths = memoryview(tokens.payload.text_lengths).cast("I")
        text, start, offset = tokens.payload.text, 0, 0
        for stream_id, first, count in zip(
            tokens.stream_ids, tokens.first_indices, tokens.counts, strict=True
        ):
            row_lengths = lengths[start : start + count].tolist()
            size = sum(row_lengths)
            if (stream := self._heard(stream_id)) is not None:
                call = stream.call
                call.received.take(
                    first, ids[start : start + count].tolist(), row_lengths, text[offset : offset + size]
                )
                self._behave(call, stream_id)
            start, offset = start + count, offset + size

    def _behave(self, call: Call, stream_id: int) -> None:
        if call.behaviour is Behaviour.CANCEL and not call.cancelled and call.count >= call.stop_at:
            call.cancelled = True
            self._cancel(stream_id)
        elif call.behaviour is Behaviour.SLOW and call.count >= call.token_limit:
            call.token_limit = call.count + _SLOW_GRANT
            self._later(random.uniform(*_SLOW_PAUSE_S), lambda: self._grant(stream_id, call.token_limit))

    def _finish(self, call: Call, attached: bool, finished: generation_pb2.Finished) -> None:
        if finished.finish_reason != _REJECTED:
            call.finished = finished
            self._end(call, "")
            return
        failure = finished.failure
        call.refusals[failure.reason] += 1
        if failure.reason == Reason.DUPLICATE_REQUEST and not call.accepted:
            self._resume(call)  # an earlier session got it in and broke before it could say so
        elif failure.reason == Reason.NOT_FOUND and attached and not call.accepted:
            call.sent = False  # it never got in
            self._resume(call)
        elif failure.retryable:
            call.sent = attached
            self._later(_AGAIN_S, lambda: self._resume(call))
        else:
            self._end(call, f"{failure.reason}: {failure.message}")

    def _end(self, call: Call, problem: str) -> None:
        call.problem = problem
        self._streams.pop(self._calls.pop(call, 0), None)
        call.done.set()
        self._on_change()

    def _cancel(self, stream_id: int) -> None:
        self._send(router_pb2.SessionRequest(cancel=router_pb2.SessionCancel(stream_id=stream_id)))

    def _grant(self, stream_id: int, limit: int) -> None:
        if stream_id in self._streams:
            credits = router_pb2.SessionCredits(stream_ids=[stream_id], token_limits=[limit])
            self._send(router_pb2.SessionRequest(credits=credits))

    def _send(self, command: router_pb2.SessionRequest) -> None:
        self._commands.put_nowait(command)

    def _later(self, delay_s: float, work: Callable[[], None]) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            work()

        timer = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers.add(timer)


def _end_of(commands: _Commands) -> None:
    """Let the reader of a queue come to its end; what was in it went nowhere."""
    while not commands.empty():
        commands.get_nowait()
    commands.put_nowait(None)
