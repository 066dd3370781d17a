"""ExecutorService: the RPCs of one engine."""

import asyncio
import secrets
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from paceline.common.v1 import engine_pb2
from paceline.executor.v1 import executor_pb2, executor_pb2_grpc
from paceline_executor.contract import Engine, EngineError, StateRequirements
from paceline_executor.control import Control
from paceline_executor.landing import Landing
from paceline_executor.meter import Meter
from paceline_executor.pull import MAX_CHUNK_BYTES
from paceline_executor.report import MAX_REPORT_BYTES
from paceline_executor.run_session import RunSession
from paceline_executor.to_proto import capabilities_message, ids_to_bytes, live_message
from paceline_runtime.errors import PacelineError, Reason, invalid, reason_of
from paceline_runtime.telemetry.spans import OpenSpans

_MAX_TEXTS = 64
_MAX_TEXT_CHARS = 1 << 20
_MAX_DRAIN_S = 3600.0


def new_identity(engine_id: str) -> engine_pb2.EngineIdentity:
    """A new life of an engine."""
    return engine_pb2.EngineIdentity(
        engine_id=engine_id,
        # Never 0, which would read as not set.
        incarnation=secrets.randbits(63) + 1,
        started_unix_ms=time.time_ns() // 1_000_000,
    )


class ExecutorService(executor_pb2_grpc.ExecutorServiceServicer):
    """Serves one engine. `endpoint()` says where other executors reach this service."""

    def __init__(
        self,
        engine: Engine,
        identity: engine_pb2.EngineIdentity,
        control: Control,
        landing: Landing,
        endpoint: Callable[[], str],
        *,
        attach_timeout_s: float,
        stall_pause_s: float,
        meter: Meter | None = None,
        spans: OpenSpans | None = None,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._capabilities = capabilities_message(engine.capabilities)
        self._control = control
        self._landing = landing
        self._endpoint = endpoint
        self._attach_timeout_s = attach_timeout_s
        self._stall_pause_s = stall_pause_s
        self._meter = meter
        self._spans = spans or OpenSpans("paceline.engine")
        self.counters: Counter[str] = Counter()
        """What happened on control streams so far: attaches, stall_pauses."""

    async def GetCapabilities(
        self, request: executor_pb2.GetCapabilitiesRequest, context: Any
    ) -> executor_pb2.GetCapabilitiesResponse:
        """What the engine is and can do."""
        return executor_pb2.GetCapabilitiesResponse(identity=self._identity, capabilities=self._capabilities)

    async def Run(  # type: ignore[override]  # a coroutine that writes to the context, as gRPC also allows
        self, request_iterator: AsyncIterator[executor_pb2.RunRequest], context: Any
    ) -> None:
        """The control stream: see `run_session`."""
        attach = await self._first(request_iterator)
        if not self._engine.alive:
            raise PacelineError(Reason.UNAVAILABLE, "the engine has failed; this process is about to end")
        session = RunSession(
            self._engine,
            self._landing,
            context.write,
            endpoint=self._endpoint(),
            stall_pause_s=self._stall_pause_s,
            counters=self.counters,
            count=None if self._meter is None else self._meter.count,
            spans=self._spans,
        )
        self._control.take(session, attach.fencing_token)
        self.counters["attaches"] += 1
        try:
            # What was said to nobody is in the live table; what is said from here on follows it.
            self._engine.events.drain()
            await session.serve(self._attached(), request_iterator)
        finally:
            self._control.leave(session)

    async def PullState(
        self, request: executor_pb2.PullStateRequest, context: Any
    ) -> AsyncIterator[executor_pb2.PullStateResponse]:
        """A state by ticket, header first."""
        wanted = StateRequirements(
            request.build, request.model_hash, request.kv_type, request.max_context_tokens
        )
        try:
            state = await asyncio.to_thread(self._engine.export_state, request.ticket, wanted)
        except EngineError as error:
            raise PacelineError(
                reason_of(error.reason, Reason.FAILED_PRECONDITION), error.message, retryable=error.retryable
            ) from None
        header = executor_pb2.StateHeader(
            positions=state.positions,
            token_ids=ids_to_bytes(state.token_ids),
            prompt_tokens=state.prompt_tokens,
            size_bytes=len(state.data),
            crc32=await asyncio.to_thread(zlib.crc32, state.data),
        )
        yield executor_pb2.PullStateResponse(header=header)
        for start in range(0, len(state.data), MAX_CHUNK_BYTES):
            yield executor_pb2.PullStateResponse(chunk=state.data[start : start + MAX_CHUNK_BYTES])

    async def Tokenize(
        self, request: executor_pb2.TokenizeRequest, context: Any
    ) -> executor_pb2.TokenizeResponse:
        """Token ids of texts."""
        if len(request.texts) > _MAX_TEXTS or sum(map(len, request.texts)) > _MAX_TEXT_CHARS:
            raise invalid(
                f"at most {_MAX_TEXTS} texts of {_MAX_TEXT_CHARS} characters together", field="texts"
            )
        ids = await asyncio.to_thread(self._engine.tokenize, list(request.texts))
        return executor_pb2.TokenizeResponse(
            results=[executor_pb2.TokenIds(ids=ids_to_bytes(row)) for row in ids]
        )

    async def Drain(self, request: executor_pb2.DrainRequest, context: Any) -> executor_pb2.DrainResponse:
        """Take nothing new, wait for what is live, then cancel it."""
        if not 0 <= request.timeout_ms <= _MAX_DRAIN_S * 1e3:
            raise invalid(f"timeout_ms must be between 0 and {_MAX_DRAIN_S * 1e3:g}", field="timeout_ms")
        completed, cancelled = await asyncio.to_thread(self._engine.drain, request.timeout_ms / 1e3)
        return executor_pb2.DrainResponse(completed=completed, cancelled=cancelled)

    async def _first(self, requests: AsyncIterator[executor_pb2.RunRequest]) -> executor_pb2.Attach:
        try:
            async with asyncio.timeout(self._attach_timeout_s):
                request = await anext(requests, None)
        except TimeoutError:
            raise PacelineError(Reason.DEADLINE_EXCEEDED, "no attach came in time") from None
        if request is None or request.WhichOneof("message") != "attach":
            raise invalid("the first message must be an attach")
        return request.attach

    def _attached(self) -> Iterator[executor_pb2.RunResponse]:
        """The live table of the moment of the first part, in as many parts as the transport needs."""
        live = [*self._engine.live_table(), *self._landing.waiting()]
        attached = executor_pb2.Attached(identity=self._identity, capabilities=self._capabilities)
        size_bytes = 0
        for row in live:
            if size_bytes >= MAX_REPORT_BYTES:
                attached.more = True
                yield executor_pb2.RunResponse(attached=attached)
                attached, size_bytes = executor_pb2.Attached(), 0
            message = live_message(row)
            attached.live.append(message)
            size_bytes += message.ByteSize()
        yield executor_pb2.RunResponse(attached=attached)
