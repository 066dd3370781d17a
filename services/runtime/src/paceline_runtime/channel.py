"""Channels to other services: matching transport options, TLS, and the caller's metadata on every call.

Metadata is added when a call starts, by thin multi-callables; gRPC's own client interceptors would step through every
message of a stream.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from pydantic import Field, SecretStr

from paceline_runtime import rpc_context
from paceline_runtime.auth import AUTHORIZATION_KEY
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.grpc_options import GrpcConfig, client_options
from paceline_runtime.telemetry.propagation import TRACEPARENT_KEY, inject
from paceline_runtime.tls import TlsConfig, channel_credentials


class ChannelConfig(ConfigModel):
    """How this process dials another service."""

    token: SecretStr | None = None
    """Bearer token to send with every call. Not set: none is sent."""
    unary_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that a call without streams may take when the code that makes it sets no deadline of its own."""
    grpc: GrpcConfig = GrpcConfig()
    """Transport settings."""


def channel(
    target: str, config: ChannelConfig | None = None, *, tls: TlsConfig | None = None
) -> grpc.aio.Channel:
    """Open a channel to `host:port`, `dns:///name:port` or `unix:/path`; it connects when first used.

    Every call carries the request id, the trace context and the token of the moment it starts.
    """
    config = config or ChannelConfig()
    options: list[tuple[str, Any]] = list(client_options(config.grpc))
    credentials = channel_credentials(tls or TlsConfig())
    if credentials is None:
        inner = grpc.aio.insecure_channel(target, options)
    else:
        if tls is not None and tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        inner = grpc.aio.secure_channel(target, credentials, options)
    authorization = None if config.token is None else f"Bearer {config.token.get_secret_value()}"
    return _Channel(inner, authorization, config.unary_timeout_s)


def outbound_metadata(authorization: str | None = None) -> tuple[tuple[str, str], ...]:
    """What a call made now tells the callee about the request it belongs to."""
    metadata = []
    if authorization:
        metadata.append((AUTHORIZATION_KEY, authorization))
    request_id = rpc_context.request_id()
    if request_id:
        metadata.append((rpc_context.REQUEST_ID_KEY, request_id))
    traceparent = inject()
    if traceparent:
        metadata.append((TRACEPARENT_KEY, traceparent))
    return tuple(metadata)


class _Channel(grpc.aio.Channel):
    """A channel whose multi-callables add metadata, and a deadline to calls without streams."""

    def __init__(self, inner: grpc.aio.Channel, authorization: str | None, unary_timeout_s: float) -> None:
        self._inner = inner
        self._authorization = authorization
        self._unary_timeout_s = unary_timeout_s

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        call = self._start(self._inner.unary_unary(*args, **kwargs))

        def start(request: Any, *, timeout: float | None = None, **rest: Any) -> Any:
            return call(request, timeout=self._unary_timeout_s if timeout is None else timeout, **rest)

        return start

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._start(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._start(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._start(self._inner.stream_stream(*args, **kwargs))

    def _start(self, call: Callable[..., Any]) -> Callable[..., Any]:
        authorization = self._authorization

        def start(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            given = () if metadata is None else tuple(metadata)
            keys = {key for key, _ in given}
            added = (pair for pair in outbound_metadata(authorization) if pair[0] not in keys)
            return call(*args, metadata=(*given, *added), **kwargs)

        return start

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
