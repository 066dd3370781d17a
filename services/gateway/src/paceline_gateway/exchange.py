"""One HTTP request and its stream on the router session: acceptance, the answer, and a client that leaves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paceline.router.v1 import generation_pb2 as pb
from paceline_gateway.openai_errors import error_body
from paceline_gateway.replies import DONE, KEEPALIVE, ReplyForm
from paceline_gateway.request_headers import REQUEST_ID
from paceline_gateway.request_stream import RequestStream
from paceline_gateway.slo_declaration import reply_headers
from paceline_gateway.telemetry import GatewayTelemetry

log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client left, so there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Seconds without output before a keep-alive, and seconds a client may leave its stream unread."""

    keepalive_s: float
    client_stall_s: float


class Exchange:
    """Serves one request whose stream is open. What has not ended when it is done is cancelled."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        stream: RequestStream,
        limits: ExchangeLimits,
        telemetry: GatewayTelemetry,
        *,
        finish_without_client: bool,
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._stream = stream
        self._limits = limits
        self._telemetry = telemetry
        self._finish_without_client = finish_without_client
        self._gone = False

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for the client leaving, and end the request with the block. Swallows ClientGone."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        except ClientGone:
            log.debug("the client left", extra={"request_id": self._stream.request_id})
        finally:
            watcher.cancel()
            if self._gone and self._finish_without_client:
                self._stream.discard()
            else:
                self._stream.cancel()

    async def acceptance(self) -> pb.Accepted:
        """Wait until the router takes the request in. Raises PacelineError when it refuses, and ClientGone."""
        while self._stream.accepted is None:
            if self._stream.ended:
                raise self._bad_end()
            await self._news()
        failure = self._stream.failure()
        if failure is not None and self._stream.next_index == 0:
            # It failed before any output, so the status can still tell.
            raise failure
        return self._stream.accepted

    async def reply_whole(self, accepted: pb.Accepted, form: ReplyForm) -> None:
        """Wait for the end and answer with all of it. Raises PacelineError when it ended badly, and ClientGone."""
        texts: list[str] = []
        ids: list[int] = []
        while True:
            output = self._stream.take()
            texts.append(output.text)
            ids.extend(output.token_ids)
            if self._stream.ended:
                break
            await self._news()
        finished = self._good_end()
        body = form.whole("".join(texts), finished, ids if self._stream.keeps_ids else None)
        response = Response(body, headers=_headers(accepted), media_type="application/json")
        await response(self._scope, self._receive, self._send)

    async def reply_stream(self, accepted: pb.Accepted, form: ReplyForm) -> None:
        """Answer with server-sent events as output comes. Raises ClientGone."""
        headers = {
            **_headers(accepted),
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        await self._send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(name.encode(), _header_value(value)) for name, value in headers.items()],
            }
        )
        pending = form.first()
        with self._telemetry.open_stream():
            while True:
                output, ended = self._stream.take(), self._stream.ended
                if output.text or output.token_ids:
                    pending += form.text(output.text, output.token_ids)
                if ended:
                    pending += self._last_events(form)
                if pending or ended:
                    await self._write(pending, more=not ended)
                    pending = b""
                self._stream.consumed()
                if ended:
                    return
                if not await self._news(self._limits.keepalive_s):
                    pending = KEEPALIVE

    async def _write(self, body: bytes, *, more: bool) -> None:
        """Send, and give up on a client that does not read. The server waits here while its buffer is full."""
        try:
            async with asyncio.timeout(self._limits.client_stall_s):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            log.warning("the client stopped reading", extra={"request_id": self._stream.request_id})
            self._telemetry.client_left("stalled")
            abort = self._scope.get("paceline.abort")
            if abort is not None:
                abort()
            raise ClientGone from None
        if self._gone:
            raise ClientGone

    async def _news(self, timeout_s: float = 3600.0) -> bool:
        news = await self._stream.news(timeout_s)
        if self._gone:
            raise ClientGone
        return news

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self._gone = True
        if not self._stream.ended:
            self._telemetry.client_left("disconnected")
        self._stream.wake()

    def _last_events(self, form: ReplyForm) -> bytes:
        failure = self._stream.failure()
        if failure is not None:
            return b"data: " + error_body(failure) + b"\n\n" + DONE
        return form.last(self._good_end()) + DONE

    def _good_end(self) -> pb.Finished:
        finished = self._stream.finished
        if finished is None or self._stream.failure() is not None:
            raise self._bad_end()
        return finished

    def _bad_end(self) -> Exception:
        return self._stream.failure() or RuntimeError("a request ended well before it was accepted")


def _headers(accepted: pb.Accepted) -> dict[str, str]:
    headers = {
        REQUEST_ID: accepted.request_id,
        "x-paceline-engine": accepted.engine_id,
        "x-paceline-estimate-source": accepted.estimate_source,
        **reply_headers(accepted.slo),
    }
    if accepted.predicted_e2e_ms > 0:
        headers["x-paceline-predicted-ms"] = f"{accepted.predicted_e2e_ms:.1f}"
    if accepted.predicted_tokens:
        headers["x-paceline-predicted-tokens"] = str(accepted.predicted_tokens)
    return {name: value for name, value in headers.items() if value}


def _header_value(value: str) -> bytes:
    return value.encode("latin-1", "replace")
