"""A small service with one method of each kind, served over a real loopback socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from paceline_runtime import rpc_context
from paceline_runtime.errors import PacelineError

Behaviour = Callable[[bytes], Awaitable[bytes]]


class EchoService:
    """Answers with what `behaviour` makes of the request. Without one: the request id, a bar, the tenant."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = self.who
        self.closed = asyncio.Event()
        self.started = asyncio.Event()
        self.failure: PacelineError | None = None

    async def who(self, _: bytes) -> bytes:
        return f"{rpc_context.request_id()}|{rpc_context.tenant()}".encode()

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.started.set()
        return await self.behaviour(request)

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Yields the numbers below the request, then fails if told to, and else ends."""
        self.started.set()
        try:
            for number in range(int(request)):
                yield str(number).encode()
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed.set()

    async def forever(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Echoes until the client is done; ends with an event when it is torn down."""
        self.started.set()
        try:
            async for request in requests:
                yield await self.behaviour(request)
        finally:
            self.closed.set()

    async def written(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """As `forever`, in the style that writes to the context."""
        async for request in requests:
            await context.write(await self.behaviour(request))

    async def total(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return str(sum([int(number) async for number in requests])).encode()


def add_echo(servicer: EchoService, server: Any) -> None:
    """As generated code does it."""
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(servicer.unary),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.count),
        "Forever": grpc.stream_stream_rpc_method_handler(servicer.forever),
        "Written": grpc.stream_stream_rpc_method_handler(servicer.written),
        "Total": grpc.stream_unary_rpc_method_handler(servicer.total),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.EchoService", handlers),))


class EchoStub:
    """As generated code does it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.unary: Any = channel.unary_unary("/test.v1.EchoService/Unary")
        self.count: Any = channel.unary_stream("/test.v1.EchoService/Count")
        self.forever: Any = channel.stream_stream("/test.v1.EchoService/Forever")
        self.written: Any = channel.stream_stream("/test.v1.EchoService/Written")
        self.total: Any = channel.stream_unary("/test.v1.EchoService/Total")
        self.missing: Any = channel.unary_unary("/test.v1.EchoService/Missing")


@pytest.fixture
async def echo() -> EchoService:
    """The servicer behind the server of a test."""
    return EchoService()


@pytest.fixture
def add_echo_to() -> Callable[[EchoService, Any], None]:
    """How the servicer is added to a server."""
    return add_echo


@pytest.fixture
def echo_stub() -> type[EchoStub]:
    """The client side."""
    return EchoStub
