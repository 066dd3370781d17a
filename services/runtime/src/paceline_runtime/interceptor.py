"""One way to wrap RPC handlers: once per call, whatever the kind of the RPC.

A response stream is turned into a coroutine that writes to the context, which is what gRPC does with a generator
anyway. So layers around a streaming handler cost nothing per message.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

ServicerContext = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class RpcInfo:
    """Which RPC is being served. `metadata` has the caller's keys, the last value of each."""

    service: str
    method: str
    streaming: bool
    metadata: dict[str, str | bytes]

    def text(self, key: str) -> str:
        """The text value of a metadata key; empty when absent."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


Layer = Callable[[RpcInfo, ServicerContext, Call], Awaitable[Any]]


class LayeredInterceptor(grpc.aio.ServerInterceptor):
    """Runs `layers` around every handler, the first one outermost."""

    def __init__(self, *layers: Layer) -> None:
        self._layers = layers

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Called by gRPC for each new RPC."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        _, service, method = handler_call_details.method.split("/", 2)
        metadata = dict(handler_call_details.invocation_metadata or ())
        streaming = handler.request_streaming or handler.response_streaming
        return self._wrap(handler, RpcInfo(service, method, streaming, metadata))

    def _wrap(self, handler: Any, info: RpcInfo) -> Any:
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            call = _as_writer(inner)
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            call = inner
        layers = self._layers

        async def serve(request: Any, context: ServicerContext) -> Any:
            def innermost() -> Awaitable[Any]:
                result: Awaitable[Any] = call(request, context)
                return result

            step: Call = innermost
            for layer in reversed(layers):
                step = _bind(layer, info, context, step)
            return await step()

        make = _HANDLERS[(handler.request_streaming, handler.response_streaming)]
        return make(serve, handler.request_deserializer, handler.response_serializer)


_HANDLERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _bind(layer: Layer, info: RpcInfo, context: ServicerContext, step: Call) -> Call:
    return lambda: layer(info, context, step)


def _as_writer(handler: Callable[..., Any]) -> Callable[[Any, ServicerContext], Awaitable[None]]:
    """A streaming handler as a coroutine function; the generator is closed even if the peer goes away."""
    if inspect.iscoroutinefunction(handler):
        return handler

    async def write_all(request: Any, context: ServicerContext) -> None:
        messages: AsyncIterator[Any] = handler(request, context)
        if inspect.isasyncgen(messages):
            async with aclosing(messages):
                async for message in messages:
                    await context.write(message)
        else:
            async for message in messages:
                await context.write(message)

    return write_all
