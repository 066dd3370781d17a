"""`/v1/chat/completions` and `/v1/completions`: from an HTTP request to a request on the router session."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import SpanKind
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from paceline.router.v1 import generation_pb2 as pb
from paceline_gateway.api_keys import ApiKeys
from paceline_gateway.body import read_json
from paceline_gateway.chat_schema import ChatRequest
from paceline_gateway.completion_schema import CompletionRequest
from paceline_gateway.config import GatewayConfig
from paceline_gateway.exchange import Exchange, ExchangeLimits
from paceline_gateway.openai_errors import error_response
from paceline_gateway.replies import ChatReply, CompletionReply, ReplyForm, ReplyHead
from paceline_gateway.request_headers import REQUEST_ID, RequestHeaders, read_headers
from paceline_gateway.router_session import RouterSession
from paceline_gateway.schema import GenerationParams, parse
from paceline_gateway.slo_declaration import declared_slo
from paceline_gateway.telemetry import GatewayTelemetry
from paceline_gateway.unsupported import refuse_unsupported_chat, refuse_unsupported_completion
from paceline_runtime import rpc_context
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.propagation import TRACEPARENT_KEY, extract, inject

# Room for what is around the request in a session's message.
_MESSAGE_SLACK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What sets one endpoint apart: how it reads a body, and how it writes an answer."""

    name: str
    prompt_field: str
    read: Callable[[dict[str, Any], pb.GenerationSpec], GenerationParams]
    form: Callable[[ReplyHead], ReplyForm]


def _read_chat(body: dict[str, Any], spec: pb.GenerationSpec) -> GenerationParams:
    refuse_unsupported_chat(body)
    request = parse(ChatRequest, body)
    spec.messages.CopyFrom(request.conversation())
    spec.max_tokens = request.output_tokens()
    spec.has_tools = bool(request.tools)
    return request


def _read_completion(body: dict[str, Any], spec: pb.GenerationSpec) -> GenerationParams:
    refuse_unsupported_completion(body)
    request = parse(CompletionRequest, body)
    prompt = request.single_prompt()
    if isinstance(prompt, str):
        spec.text = prompt
    else:
        spec.token_ids = prompt
    spec.max_tokens = request.max_tokens or 0
    return request


CHAT = Endpoint("chat.completions", "messages", _read_chat, ChatReply)
COMPLETIONS = Endpoint("completions", "prompt", _read_completion, CompletionReply)


class Admission:
    """How many requests are being served, and whether new ones are welcome."""

    def __init__(self, limit: int) -> None:
        self.live = 0
        self.draining = False
        self._limit = limit

    def __enter__(self) -> None:
        if self.draining:
            raise PacelineError(
                Reason.DRAINING, "this gateway is shutting down: ask again", retry_after_ms=1000
            )
        if self.live >= self._limit:
            raise PacelineError(
                Reason.QUEUE_FULL,
                f"this gateway serves at most {self._limit} requests at a time",
                retry_after_ms=1000,
            )
        self.live += 1

    def __exit__(self, *_: object) -> None:
        self.live -= 1


class GenerateApp:
    """One endpoint as an ASGI application."""

    def __init__(
        self,
        endpoint: Endpoint,
        config: GatewayConfig,
        session: RouterSession,
        keys: ApiKeys,
        admission: Admission,
        telemetry: GatewayTelemetry,
    ) -> None:
        self._endpoint = endpoint
        self._config = config
        self._session = session
        self._keys = keys
        self._admission = admission
        self._telemetry = telemetry
        self._limits = ExchangeLimits(config.keepalive_s, config.client_stall_s)
        self._max_spec_bytes = config.channel.grpc.max_message_bytes - _MESSAGE_SLACK_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; errors leave in OpenAI's shape."""
        request = Request(scope, receive)
        request_id = ""
        try:
            with self._admission:
                tenant = self._keys.tenant_of(request.headers)
                headers = read_headers(request.headers)
                request_id = headers.request_id
                parent = extract(request.headers.get(TRACEPARENT_KEY, ""))
                with (
                    rpc_context.bound(request_id=request_id, tenant=tenant),
                    self._telemetry.tracer.start_as_current_span(
                        f"POST {scope['path']}", context=parent, kind=SpanKind.SERVER
                    ) as span,
                ):
                    span.set_attribute(names.ATTR_REQUEST_ID, request_id)
                    await self._serve(request, headers, tenant, send)
        except ClientDisconnect:
            self._telemetry.client_left("disconnected")
        except PacelineError as error:
            await error_response(self._named(error), request_id=request_id)(scope, receive, send)

    async def _serve(self, request: Request, headers: RequestHeaders, tenant: str, send: Send) -> None:
        body = await read_json(
            request, max_bytes=self._config.max_body_bytes, timeout_s=self._config.body_timeout_s
        )
        spec = pb.GenerationSpec(
            request_id=headers.request_id,
            tenant=tenant,
            app=headers.app,
            durability=headers.durability,
            priority=headers.priority,
            max_wait_ms=headers.max_wait_ms,
            # The gateway comes back by itself when the session breaks; a client that leaves is told by a cancel.
            on_disconnect=pb.ON_DISCONNECT_DETACH,
            traceparent=inject(),
        )
        params = self._fill(spec, body, request)
        stream = self._session.open(spec, window_tokens=self._config.window_tokens if spec.streaming else 0)
        stream.keeps_ids = bool(params.return_token_ids)
        exchange = Exchange(
            request.scope,
            request.receive,
            send,
            stream,
            self._limits,
            self._telemetry,
            finish_without_client=headers.finish_without_client,
        )
        async with exchange.watching():
            accepted = await exchange.acceptance()
            form = self._endpoint.form(ReplyHead.of(accepted, include_usage=params.include_usage))
            if spec.streaming:
                await exchange.reply_stream(accepted, form)
            else:
                await exchange.reply_whole(accepted, form)
        if stream.finished is not None:
            self._telemetry.finished(stream.finished)

    def _fill(self, spec: pb.GenerationSpec, body: dict[str, Any], request: Request) -> GenerationParams:
        params = self._endpoint.read(body, spec)
        params.check_stream_options()
        spec.model = params.model or ""
        spec.streaming = bool(params.stream)
        spec.sampling.CopyFrom(params.sampling())
        spec.cache_salt = params.cache_salt or ""
        slo = declared_slo(request.headers.items(), params.metadata)
        if slo is not None:
            spec.slo.CopyFrom(slo)
        if spec.ByteSize() > self._max_spec_bytes:
            raise PacelineError(
                Reason.MESSAGE_TOO_LARGE, f"the request is larger than {self._max_spec_bytes:,} bytes"
            )
        return params

    def _named(self, error: PacelineError) -> PacelineError:
        """Name the field at fault where the router spoke of it in its own words."""
        if error.reason is Reason.CONTEXT_LENGTH_EXCEEDED:
            error.metadata.setdefault("field", self._endpoint.prompt_field)
        elif error.reason is Reason.DUPLICATE_REQUEST:
            error.metadata.setdefault("field", REQUEST_ID)
        return error
