"""A router for tests of its clients: the real contract over a real socket, with answers that a test writes beforehand.

What it knows of requests outlives its server, as a real router's ledger and schedulers do, so it can be killed and
started again on the same port in the middle of a stream.
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from paceline.common.v1 import attempt_pb2, engine_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc

PATIENCE_S = 200.0


@dataclass
class Script:
    """How one request goes. `pieces`: the text of each token. `hold_at`: no token from there until `release`."""

    pieces: list[bytes] = field(default_factory=list)
    finish_reason: "attempt_pb2.FinishReason.ValueType" = attempt_pb2.FINISH_REASON_STOP
    refusal: attempt_pb2.Failure | None = None
    failure: attempt_pb2.Failure | None = None
    hold_acceptance: bool = False
    hold_at: int | None = None
    skip_once: int | None = None
    """Index of a token that is left out once, as if it had been lost on the way."""
    repeat_from: int | None = None
    """After this many tokens, all of them are sent once more."""

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()

    async def release(self) -> None:
        """Let held tokens, or a held acceptance, go."""
        async with self.changed:
            self.hold_at = None
            self.hold_acceptance = False
            self.changed.notify_all()


@dataclass
class FakeRequest:
    """A request and what became of it."""

    spec: generation_pb2.GenerationSpec
    script: Script
    sent: int = 0
    limit: int = 0
    accepted: bool = False
    cancelled: bool = False
    attaches: list[int] = field(default_factory=list)
    arrived_unix_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    blocked: asyncio.Event = field(default_factory=asyncio.Event)


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Serves `Session`, `ListEngines`, `ListRequests` and `GetRequest`. `script` says how each request goes."""

    def __init__(self, script: Callable[[generation_pb2.GenerationSpec], Script]) -> None:
        self.script = script
        self.requests: dict[str, FakeRequest] = {}
        self.submits = 0
        self.sessions = 0
        self.forgets_on_restart = False
        self.changed = asyncio.Condition()
        self.engines = [_engine("cpu-0"), _engine("cpu-1")]
        self.address = "127.0.0.1:0"
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on the port of the last time."""
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 24)]
        )
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def kill(self) -> None:
        """Break every stream, and stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self.forgets_on_restart:
            self.requests.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that this router knows has become true."""
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(condition)

    def only(self) -> FakeRequest:
        """The one request there was."""
        (request,) = self.requests.values()
        return request

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[router_pb2.SessionResponse]:  # type: ignore[override]
        self.sessions += 1
        out: asyncio.Queue[router_pb2.SessionResponse] = asyncio.Queue()
        streams: dict[int, FakeRequest] = {}
        tasks: list[asyncio.Task[None]] = []

        def keep(task: asyncio.Task[None]) -> None:
            tasks.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        async def read() -> None:
            async for message in request_iterator:
                if message.WhichOneof("message") == "batch":
                    await self._obey(message.batch, streams, out, keep)

        keep(asyncio.create_task(read()))
        try:
            while True:
                yield await out.get()
        finally:
            for task in tasks:
                task.cancel()

    async def _obey(
        self,
        batch: router_pb2.SessionBatch,
        streams: dict[int, FakeRequest],
        out: asyncio.Queue[router_pb2.SessionResponse],
        keep: Callable[[asyncio.Task[None]], None],
    ) -> None:
        touched: list[FakeRequest] = []
        for submit in batch.submits:
            self.submits += 1
            if submit.spec.request_id in self.requests:
                await out.put(
                    _refused(submit.stream_id, "DUPLICATE_REQUEST", f"{submit.spec.request_id} exists")
                )
                continue
            request = FakeRequest(submit.spec, self.script(submit.spec), limit=submit.token_limit)
            self.requests[submit.spec.request_id] = request
            streams[submit.stream_id] = request
            keep(asyncio.create_task(self._serve(submit.stream_id, request, 0, out)))
        for attach in batch.attaches:
            known = self.requests.get(attach.request_id)
            if known is None:
                await out.put(_refused(attach.stream_id, "NOT_FOUND", f"{attach.request_id} is not known"))
                continue
            known.attaches.append(attach.from_index)
            known.limit = attach.token_limit
            streams[attach.stream_id] = known
            keep(asyncio.create_task(self._serve(attach.stream_id, known, attach.from_index, out)))
        for cancel in batch.cancels:
            if cancel.stream_id in streams:
                streams[cancel.stream_id].cancelled = True
                touched.append(streams[cancel.stream_id])
        for stream_id, limit in zip(batch.credits.stream_ids, batch.credits.token_limits, strict=True):
            if stream_id in streams:
                streams[stream_id].limit = limit
                touched.append(streams[stream_id])
        await self._tell(*touched)

    async def _tell(self, *requests: FakeRequest) -> None:
        for request in requests:
            async with request.script.changed:
                request.script.changed.notify_all()
        async with self.changed:
            self.changed.notify_all()

    async def _serve(
        self, stream_id: int, request: FakeRequest, index: int, out: asyncio.Queue[router_pb2.SessionResponse]
    ) -> None:
        script = request.script
        if script.refusal is not None:
            await out.put(_finished(stream_id, request, attempt_pb2.FINISH_REASON_REJECTED, script.refusal))
            return
        await self._tell(request)
        async with script.changed:
            await script.changed.wait_for(lambda: request.cancelled or not script.hold_acceptance)
        if not request.cancelled:
            request.accepted = True
            await out.put(_accepted(stream_id, request))
        while index < len(script.pieces) and not request.cancelled:
            async with script.changed:
                while not request.cancelled and not self._may_send(request, index):
                    request.blocked.set()
                    async with self.changed:
                        self.changed.notify_all()
                    await script.changed.wait()
                request.blocked.clear()
            if request.cancelled:
                break
            if script.skip_once == index:
                script.skip_once = None
                index += 1
                continue
            count = 1
            await out.put(_tokens(stream_id, index, script.pieces[index : index + count]))
            index += count
            request.sent = max(request.sent, index)
            if script.repeat_from == index:
                script.repeat_from = None
                await out.put(_tokens(stream_id, 0, script.pieces[: index + 1]))
                index += 1
            await self._tell(request)
        if request.cancelled:
            reason: attempt_pb2.FinishReason.ValueType = attempt_pb2.FINISH_REASON_CANCELLED
        else:
            reason = attempt_pb2.FINISH_REASON_FAILED if script.failure is not None else script.finish_reason
        await out.put(_finished(stream_id, request, reason, script.failure))
        await self._tell(request)

    @staticmethod
    def _may_send(request: FakeRequest, index: int) -> bool:
        hold_at = request.script.hold_at
        return (request.limit == 0 or index < request.limit) and (hold_at is None or index < hold_at)

    async def ListEngines(self, request: Any, context: Any) -> router_pb2.ListEnginesResponse:  # type: ignore[override]
        return router_pb2.ListEnginesResponse(engines=self.engines)

    async def ListRequests(self, request: Any, context: Any) -> router_pb2.ListRequestsResponse:  # type: ignore[override]
        rows = [_record(one) for one in self.requests.values() if request.tenant in ("", one.spec.tenant)]
        return router_pb2.ListRequestsResponse(requests=rows)

    async def GetRequest(self, request: Any, context: Any) -> router_pb2.GetRequestResponse:  # type: ignore[override]
        if request.request_id not in self.requests:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not known")
        return router_pb2.GetRequestResponse(request=_record(self.requests[request.request_id]))


def _unimplemented(name: str) -> Any:
    async def answer(self: FakeRouter, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not part of the fake")

    return answer


for _name in (
    "Generate", "Attach", "Cancel", "Route", "RouteStream", "BeginTask", "EndTask", "DrainEngine", "ExplainRequest",
):  # fmt: skip
    setattr(FakeRouter, _name, _unimplemented(_name))
FakeRouter.__abstractmethods__ = frozenset()


def _accepted(stream_id: int, request: FakeRequest) -> router_pb2.SessionResponse:
    spec = request.spec
    slo = (
        spec.slo if spec.HasField("slo") else slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=500, tbt_ms=50))
    )
    accepted = generation_pb2.Accepted(
        request_id=spec.request_id,
        model=spec.model or "tiny",
        engine_id="cpu-0",
        slo=slo,
        prompt_tokens=7,
        predicted_e2e_ms=1234.5,
        predicted_tokens=42,
        estimate_source="fallback",
        arrived_unix_ms=request.arrived_unix_ms,
    )
    return router_pb2.SessionResponse(
        accepted=[router_pb2.SessionAccepted(stream_id=stream_id, accepted=accepted)]
    )


def _tokens(stream_id: int, first: int, pieces: list[bytes]) -> router_pb2.SessionResponse:
    payload = attempt_pb2.TokenPayload(
        token_ids=struct.pack(f"<{len(pieces)}i", *range(first, first + len(pieces))),
        text_lengths=struct.pack(f"<{len(pieces)}I", *map(len, pieces)),
        text=b"".join(pieces),
    )
    tokens = router_pb2.SessionTokens(
        stream_ids=[stream_id], first_indices=[first], counts=[len(pieces)], payload=payload
    )
    return router_pb2.SessionResponse(tokens=tokens)


def _finished(
    stream_id: int,
    request: FakeRequest,
    reason: "attempt_pb2.FinishReason.ValueType",
    failure: attempt_pb2.Failure | None = None,
) -> router_pb2.SessionResponse:
    finished = generation_pb2.Finished(
        finish_reason=reason,
        failure=failure,
        prompt_tokens=7,
        output_tokens=request.sent if request.cancelled else len(request.script.pieces),
        outcome=slo_pb2.SloOutcome(slo_class=slo_pb2.SLO_CLASS_LATENCY, attained=failure is None),
    )
    return router_pb2.SessionResponse(
        finished=[router_pb2.SessionFinished(stream_id=stream_id, finished=finished)]
    )


def _refused(stream_id: int, reason: str, message: str) -> router_pb2.SessionResponse:
    finished = generation_pb2.Finished(
        finish_reason=attempt_pb2.FINISH_REASON_REJECTED,
        failure=attempt_pb2.Failure(reason=reason, message=message),
    )
    return router_pb2.SessionResponse(
        finished=[router_pb2.SessionFinished(stream_id=stream_id, finished=finished)]
    )


def _record(request: FakeRequest) -> router_pb2.RequestRecord:
    return router_pb2.RequestRecord(
        request_id=request.spec.request_id,
        tenant=request.spec.tenant,
        state=attempt_pb2.REQUEST_STATE_RUNNING,
        slo=request.spec.slo,
        arrived_unix_ms=request.arrived_unix_ms,
        output_tokens=request.sent,
    )


def _engine(engine_id: str) -> router_pb2.EngineRecord:
    return router_pb2.EngineRecord(
        engine_id=engine_id,
        state=router_pb2.ENGINE_STATE_UP,
        capabilities=engine_pb2.EngineCapabilities(model="tiny", max_batch=16, kv_capacity_tokens=4096),
    )
