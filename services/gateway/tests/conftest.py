"""A gateway served by uvicorn on a free port, in front of a fake router on another."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fake_router import FakeRouter, Script

from paceline_gateway.app import GatewayApp
from paceline_gateway.config import GatewayConfig

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
WORDS = [f"w{i} ".encode() for i in range(40)]

StartGateway = Callable[..., Awaitable[GatewayApp]]


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    """A router that answers every request with forty words."""
    async with FakeRouter(lambda spec: Script(list(WORDS))) as fake:
        yield fake


@pytest.fixture
async def start_gateway(router: FakeRouter) -> AsyncIterator[StartGateway]:
    """Start a gateway with some config fields of its own, connected to the router."""
    async with AsyncExitStack() as stack:

        async def start(**fields: Any) -> GatewayApp:
            config = GatewayConfig(
                **{
                    "listen": "127.0.0.1:0",
                    "router": router.address,
                    "drain_limit_s": 0.2,
                    "fleet_cache_ms": 0,
                }
                | fields
            )
            app = await stack.enter_async_context(GatewayApp(config))
            await app.session.wait_connected()
            return app

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> GatewayApp:
    """A gateway as it comes."""
    return await start_gateway()


@pytest.fixture
async def client(gateway: GatewayApp) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of that gateway."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=90) as http:
        yield http
