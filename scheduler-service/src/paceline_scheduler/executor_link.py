"""The control stream to the executor: dial, attach, carry commands down and reports up, dial again."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Protocol, TypeAlias

import grpc

from paceline.executor.v1 import executor_pb2, executor_pb2_grpc
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.status import from_rpc_error
from paceline_scheduler.outbox import CommandOutbox

log = logging.getLogger(__name__)

_Call: TypeAlias = "grpc.aio.StreamStreamCall[executor_pb2.RunRequest, executor_pb2.RunResponse]"


class EngineEvents(Protocol):
    """What the link tells. Called on the loop, one at a time; must not block."""

    def attached(self, attached: executor_pb2.Attached) -> None:
        """A stream is open; this lives in the engine."""
        ...

    def report(self, report: executor_pb2.Report) -> None:
        """The engine reports."""
        ...

    def detached(self, cause: str) -> None:
        """The stream broke; the link dials again."""
        ...

    def out_of_reach(self, cause: str) -> None:
        """No stream for `engine_lost_after_s`; told once until the next attach."""
        ...

    def fenced(self, cause: str) -> None:
        """A newer scheduler has the engine. The link has given up."""
        ...


class ExecutorLink:
    """Keeps one stream open. `run` returns only when this scheduler was fenced off."""

    def __init__(
        self,
        dial: Callable[[], grpc.aio.Channel],
        attach: executor_pb2.Attach,
        outbox: CommandOutbox,
        events: EngineEvents,
        *,
        lost_after_s: float,
        attach_timeout_s: float,
        redial_min_s: float,
        redial_max_s: float,
    ) -> None:
        self._dial = dial
        self._attach = attach
        self._outbox = outbox
        self._events = events
        self._lost_after_s = lost_after_s
        self._attach_timeout_s = attach_timeout_s
        self._redial_min_s = redial_min_s
        self._redial_max_s = redial_max_s
        self._deadline: asyncio.TimerHandle | None = None
        self._attached = False
        self._cause = "not connected yet"
        self._call: _Call | None = None

    async def run(self) -> None:
        """Stay attached until cancelled or fenced."""
        wait_s = self._redial_min_s
        self._start_deadline()
        channel = self._dial()
        try:
            while True:
                try:
                    await self._stream(channel)
                    self._cause = "the executor closed the stream"
                except PacelineError as error:
                    self._cause = str(error)
                    # A stream that ends as fenced may mean that the executor shuts down; a refused attach is final.
                    if error.reason is Reason.FENCED and not self._attached:
                        self._events.fenced(self._cause)
                        return
                except TimeoutError:
                    self._cause = "the executor did not answer the attach in time"
                if self._attached:
                    self._attached = False
                    wait_s = self._redial_min_s
                    self._outbox.clear()
                    self._events.detached(self._cause)
                    self._start_deadline()
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(wait_s * 2, self._redial_max_s)
        finally:
            self._stop_deadline()
            await channel.close()

    def interrupt(self) -> None:
        """Break the stream; the link dials again. For tests and for operators who want a fresh look."""
        if self._call is not None:
            self._call.cancel()

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """One stream, from attach to its end."""
        call = executor_pb2_grpc.ExecutorServiceStub(channel).Run()
        self._call = call
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._attach_timeout_s):
                await call.write(executor_pb2.RunRequest(attach=self._attach))
                attached = await _read_attached(call)
                while attached.more:
                    part = await _read_attached(call)
                    attached.live.extend(part.live)
                    attached.more = part.more
            self._stop_deadline()
            self._attached = True
            self._outbox.clear()
            self._events.attached(attached)
            writer = asyncio.create_task(self._write(call), name="executor-commands")
            while True:
                message = await call.read()
                if not isinstance(message, executor_pb2.RunResponse):
                    break
                if message.HasField("report"):
                    self._events.report(message.report)
            error = await _status_of(call)
            if error.code() is not grpc.StatusCode.OK:
                raise from_rpc_error(error)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            # A call that `interrupt` cancelled raises this, too; only a cancel of this task must go on.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise PacelineError(Reason.CANCELLED, "the stream was interrupted") from None
        finally:
            self._call = None
            call.cancel()
            if writer is not None:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer

    async def _write(self, call: _Call) -> None:
        try:
            while True:
                await call.write(await self._outbox.take())
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            # The reader sees the end of the stream too, and says so.
            log.debug("command stream ended", extra={"cause": str(error)})

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(self._lost_after_s, self._out_of_reach)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _out_of_reach(self) -> None:
        # The handle is kept: one call until the next attach.
        self._events.out_of_reach(self._cause)


async def _read_attached(call: _Call) -> executor_pb2.Attached:
    """The next part of the answer to an attach."""
    response = await call.read()
    if not isinstance(response, executor_pb2.RunResponse):
        # The status says why; ending without an answer is an error of the executor's.
        raise from_rpc_error(await _status_of(call))
    if response.WhichOneof("message") != "attached":
        raise PacelineError(Reason.FAILED_PRECONDITION, "the executor did not answer with Attached")
    return response.attached


async def _status_of(
    call: _Call,
) -> grpc.aio.AioRpcError:
    """How a call that ended did end, as an error (code OK when it ended well)."""
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        await call.details(),
    )
