"""The one stream between this gateway and the router, shared by all HTTP requests.

It outlives the router: while that is away, requests wait; once it is back, each goes on where it stopped, so that the
HTTP client sees one uninterrupted stream. A request that the router had accepted is attached from the next index
wanted; one that it may not have seen is handed in again under the same id, and attached if the router knows it already.
"""

import asyncio
import logging
import random
import struct
import time
from collections.abc import Callable, Sequence

import grpc

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_gateway.outbox import Outbox
from paceline_gateway.request_stream import Phase, RequestStream, failure_of
from paceline_gateway.router_client import RouterClient, SessionCall
from paceline_gateway.session_limits import SessionCounters, SessionLimits
from paceline_runtime.errors import PacelineError, Reason

log = logging.getLogger(__name__)

_HOUSEKEEPING_S = 0.1
_RETRY_S = 0.25
_CONNECT_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.02
# A router that answers every attach with the same gap, or never with what it says it has, is broken.
_MAX_FRUITLESS_ATTACHES = 5
# How far the clocks of the gateway's and the router's machine may be apart.
_CLOCK_SKEW_MS = 5000
# Answers of a router that is still on its feet to a request it was asked to take up again.
_NOT_YET = frozenset(
    {Reason.NOT_FOUND, Reason.NO_ENGINE, Reason.UNAVAILABLE, Reason.DRAINING, Reason.STORE_UNAVAILABLE}
)


class RouterSession:
    """Requests in, output back. `run` keeps it connected until it is cancelled."""

    def __init__(
        self, router: RouterClient, client_id: str, limits: SessionLimits, *, on_reattach: Callable[[], None]
    ) -> None:
        self.counters = SessionCounters()
        self._on_reattach = on_reattach
        self._router = router
        self._client_id = client_id
        self._limits = limits
        self._streams: dict[int, RequestStream] = {}
        self._by_request: dict[str, RequestStream] = {}
        self._outbox: Outbox | None = None
        self._connected_at = 0.0
        self._last_stream_id = 0
        self._reached = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._checks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """True while the router can be reached."""
        return self._outbox is not None

    @property
    def live(self) -> int:
        """Requests that have not ended, those being cancelled included."""
        return len(self._by_request)

    async def wait_connected(self) -> None:
        """Wait until the router is reached."""
        await self._reached.wait()

    async def wait_empty(self) -> None:
        """Wait until no request is live."""
        await self._empty.wait()

    def open(self, spec: generation_pb2.GenerationSpec, *, window_tokens: int) -> RequestStream:
        """Hand in a request; `spec.request_id` must be set. Raises DUPLICATE_REQUEST when the id is live here."""
        if spec.request_id in self._by_request:
            raise duplicate(spec.request_id)
        give_up_at = time.monotonic() + self._limits.router_wait_s
        stream = RequestStream(spec, self, window_tokens=window_tokens, give_up_at=give_up_at)
        self._by_request[spec.request_id] = stream
        self._empty.clear()
        self._assign_id(stream)
        if self._outbox is not None:
            self._outbox.submit(stream.stream_id, spec, stream.token_limit)
        return stream

    def grant(self, stream: RequestStream) -> None:
        """Tell the router the stream's `token_limit`."""
        self.counters.grants += 1
        if self._outbox is not None and not stream.ended:
            self._outbox.credit(stream.stream_id, stream.token_limit)

    def cancel(self, stream: RequestStream) -> None:
        """Ask the router to end the request. It stays in the table until the router says that it has ended."""
        if stream.ended or stream.cancelling:
            return
        stream.cancelling = True
        self.counters.cancels += 1
        if self._outbox is None and stream.phase is Phase.SUBMITTED:
            # It never left this process.
            self._fail(stream, PacelineError(Reason.CANCELLED, "the request was cancelled"))
            return
        stream.give_up_at = time.monotonic() + self._limits.outage_limit_s
        if self._outbox is not None:
            self._outbox.cancel(stream.stream_id)

    async def run(self) -> None:
        """Connect, serve, and connect again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._housekeeping())
            backoff_s = _FIRST_BACKOFF_S
            while True:
                try:
                    call = await self._router.open_session(_CONNECT_TIMEOUT_S)
                except (grpc.RpcError, TimeoutError) as error:
                    log.debug("the router cannot be reached", extra={"error": repr(error)})
                else:
                    await self._serve(call)
                    if time.monotonic() - self._connected_at > 1.0:
                        backoff_s = _FIRST_BACKOFF_S
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, self._limits.reconnect_max_s)

    async def flush(self, timeout_s: float) -> None:
        """Give cancels that were just asked for the time to leave and to be confirmed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            log.warning("requests were still live at the end", extra={"live": self.live})

    # The connection.

    async def _serve(self, call: SessionCall) -> None:
        outbox = Outbox()
        writer: asyncio.Task[None] | None = None
        self._connected_at = time.monotonic()
        try:
            opening = router_pb2.SessionOpen(client_id=self._client_id)
            await call.write(router_pb2.SessionRequest(open=opening))
            self.counters.connections += 1
            self._outbox = outbox
            self._reached.set()
            self._resume_all()
            log.info("connected to the router", extra={"live": self.live})
            writer = asyncio.create_task(self._write(call, outbox))
            while True:
                response = await call.read()
                if not isinstance(response, router_pb2.SessionResponse):
                    break
                self._on_response(response)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            said = (
                f"{error.code()}: {error.details()}"
                if isinstance(error, grpc.aio.AioRpcError)
                else repr(error)
            )
            log.warning("lost the router", extra={"said": said, "live": self.live})
        except (ValueError, struct.error):
            # Columns that do not fit together: nothing on this connection can be trusted any more.
            log.exception("the router's message makes no sense", extra={"live": self.live})
        finally:
            self._outbox = None
            self._reached.clear()
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])
            call.cancel()
            self._pause_all()

    async def _write(self, call: SessionCall, outbox: Outbox) -> None:
        try:
            while True:
                await call.write(await outbox.next_message())
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            # The call is over: its reader sees that too, and says why.
            log.debug("the session's writer stopped", extra={"error": repr(error)})

    def _resume_all(self) -> None:
        for stream in list(self._by_request.values()):
            self._assign_id(stream)
            stream.retry_at = None
            self._resume(stream)

    def _resume(self, stream: RequestStream) -> None:
        """Hand a request in or take it up again on the current connection."""
        if self._outbox is None:
            return
        if stream.accepted is None and not stream.cancelling:
            self._outbox.submit(stream.stream_id, stream.spec, stream.token_limit)
        else:
            self._attach(stream)

    def _attach(self, stream: RequestStream) -> None:
        if self._outbox is None:
            return
        self.counters.reattaches += 1
        self._on_reattach()
        stream.phase = Phase.ATTACHING
        self._outbox.attach(stream.stream_id, stream.request_id, stream.next_index, stream.token_limit)
        if stream.cancelling:
            self._outbox.cancel(stream.stream_id)

    def _reattach(self, stream: RequestStream) -> None:
        """Ask again from the next index wanted, under a new stream id: what is still under way is told apart."""
        stream.fruitless_attaches += 1
        if stream.fruitless_attaches > _MAX_FRUITLESS_ATTACHES:
            self._fail(
                stream, PacelineError(Reason.INTERNAL, "the router's output has a gap that does not close")
            )
            return
        if self._outbox is not None:
            # Nobody listens to the old id any more, so its bound must not hold the request back.
            self._outbox.credit(stream.stream_id, 0)
        self._assign_id(stream)
        self._attach(stream)

    def _pause_all(self) -> None:
        """The connection is gone: what may have been handed in counts as handed in."""
        limit = time.monotonic() + self._limits.outage_limit_s
        for stream in self._by_request.values():
            stream.give_up_at = limit
            if stream.accepted is None:
                stream.phase = Phase.RESUBMITTED

    # What the router says.

    def _on_response(self, response: router_pb2.SessionResponse) -> None:
        for accepted in response.accepted:
            if (stream := self._streams.get(accepted.stream_id)) is not None:
                stream.on_accepted(accepted.accepted)
        if response.HasField("tokens"):
            self._on_tokens(response.tokens)
        for finished in response.finished:
            if (stream := self._streams.get(finished.stream_id)) is not None:
                self._on_finished(stream, finished.finished)

    def _on_tokens(self, tokens: router_pb2.SessionTokens) -> None:
        lengths = _uint32s(tokens.payload.text_lengths)
        text = memoryview(tokens.payload.text)
        ids = _uint32s(tokens.payload.token_ids)
        token = byte = 0
        for stream_id, first, count in zip(
            tokens.stream_ids, tokens.first_indices, tokens.counts, strict=True
        ):
            row = lengths[token : token + count]
            end = byte + sum(row)
            stream = self._streams.get(stream_id)
            if stream is not None:
                if first < stream.next_index:
                    self.counters.overlaps += 1
                if not stream.on_tokens(first, row, text[byte:end], ids[token : token + count]):
                    self.counters.gaps += 1
                    log.warning(
                        "gap in a request's output",
                        extra={"request_id": stream.request_id, "wanted": stream.next_index, "got": first},
                    )
                    self._reattach(stream)
            token, byte = token + count, end

    def _on_finished(self, stream: RequestStream, finished: generation_pb2.Finished) -> None:
        failure = failure_of(finished)
        if failure is None and finished.output_tokens > stream.next_index:
            self.counters.gaps += 1
            self._reattach(stream)
        elif failure is not None and self._may_ask_again(stream, finished, failure):
            return
        else:
            stream.on_finished(finished)
            self._forget(stream)

    def _may_ask_again(
        self, stream: RequestStream, finished: generation_pb2.Finished, failure: PacelineError
    ) -> bool:
        """Whether a refusal means only that a router is not ready yet, or knows the request; if so, act on it."""
        if stream.phase not in (Phase.RESUBMITTED, Phase.ATTACHING) or stream.cancelling:
            return False
        if finished.finish_reason not in (
            attempt_pb2.FINISH_REASON_REJECTED,
            attempt_pb2.FINISH_REASON_FAILED,
            attempt_pb2.FINISH_REASON_EXPIRED,
        ):
            return False
        if failure.reason is Reason.DUPLICATE_REQUEST and stream.phase is Phase.RESUBMITTED:
            task = asyncio.create_task(self._attach_if_ours(stream))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)
            return True
        if failure.reason not in _NOT_YET:
            return False
        now = time.monotonic()
        if now < self._connected_at + self._limits.adoption_grace_s:
            stream.retry_at = now + _RETRY_S
            return True
        if failure.reason is Reason.NOT_FOUND and stream.next_index == 0:
            # Nothing reached the client yet, so beginning again loses nothing and doubles nothing.
            stream.accepted = None
            stream.phase = Phase.RESUBMITTED
            stream.retry_at = now
            return True
        return False

    async def _attach_if_ours(self, stream: RequestStream) -> None:
        """Take up a request whose id the router knows, unless it is another client's of the same id."""
        try:
            known = await self._router.get_request(stream.request_id)
        except PacelineError as error:
            log.warning(
                "cannot look up a request", extra={"request_id": stream.request_id, "error": str(error)}
            )
            stream.retry_at = time.monotonic() + _RETRY_S
            return
        if stream.ended:
            return
        other_tenant = bool(known.tenant and stream.spec.tenant) and known.tenant != stream.spec.tenant
        if other_tenant or 0 < known.arrived_unix_ms < stream.opened_unix_ms - _CLOCK_SKEW_MS:
            self._fail(stream, duplicate(stream.request_id))
        else:
            self._assign_id(stream)
            self._attach(stream)

    # The table.

    def _assign_id(self, stream: RequestStream) -> None:
        self._streams.pop(stream.stream_id, None)
        self._last_stream_id = self._last_stream_id % 0xFFFF_FFFE + 1
        while self._last_stream_id in self._streams:
            self._last_stream_id = self._last_stream_id % 0xFFFF_FFFE + 1
        stream.stream_id = self._last_stream_id
        self._streams[stream.stream_id] = stream

    def _fail(self, stream: RequestStream, error: PacelineError) -> None:
        stream.fail(error)
        self._forget(stream)

    def _forget(self, stream: RequestStream) -> None:
        self._streams.pop(stream.stream_id, None)
        self._by_request.pop(stream.request_id, None)
        if not self._by_request:
            self._empty.set()

    async def _housekeeping(self) -> None:
        """Ask again where it is time, and give up on what waited for too long."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            now = time.monotonic()
            for stream in list(self._by_request.values()):
                if self._outbox is None:
                    if now >= stream.give_up_at:
                        self._fail(
                            stream,
                            PacelineError(
                                Reason.UNAVAILABLE, "the router cannot be reached", retry_after_ms=2000
                            ),
                        )
                elif stream.cancelling and now >= stream.give_up_at:
                    log.warning(
                        "the router never confirmed a cancel", extra={"request_id": stream.request_id}
                    )
                    self._fail(stream, PacelineError(Reason.CANCELLED, "the request was cancelled"))
                elif stream.retry_at is not None and now >= stream.retry_at:
                    stream.retry_at = None
                    self._assign_id(stream)
                    self._resume(stream)


def duplicate(request_id: str) -> PacelineError:
    """The refusal of an id that is in use."""
    return PacelineError(
        Reason.DUPLICATE_REQUEST, f"a request with id {request_id} exists", metadata={"field": "x-request-id"}
    )


def _uint32s(column: bytes) -> Sequence[int]:
    """A little-endian uint32 column."""
    return struct.unpack(f"<{len(column) // 4}I", column)
