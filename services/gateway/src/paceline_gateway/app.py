"""Builds the gateway: the only file that knows all its parts."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn

from paceline_gateway.api_keys import ApiKeys, check_exposure
from paceline_gateway.config import GatewayConfig
from paceline_gateway.fleet import Fleet
from paceline_gateway.generate import Admission, Endpoint, GenerateApp
from paceline_gateway.router_client import RouterClient
from paceline_gateway.router_session import RouterSession
from paceline_gateway.routes import Pages, build_routes
from paceline_gateway.session_limits import SessionLimits
from paceline_gateway.telemetry import GatewayTelemetry
from paceline_runtime.address import host_of, with_port
from paceline_runtime.channel import channel
from paceline_runtime.config_model import ConfigError
from paceline_runtime.service import Process, ServiceConfig
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.tls import TlsConfig

log = logging.getLogger(__name__)

_LAST_CANCELS_S = 1.0


class GatewayServiceConfig(ServiceConfig):
    """Everything `python -m paceline_gateway` reads."""

    gateway: GatewayConfig = GatewayConfig()
    """The OpenAI-compatible front door."""


class GatewayApp:
    """A running gateway: `async with GatewayApp(config) as app: app.address`."""

    def __init__(
        self, config: GatewayConfig, *, tls: TlsConfig | None = None, telemetry: Telemetry | None = None
    ) -> None:
        """Raises ConfigError when the address would be open to others without keys."""
        check_exposure(config)
        self._config = config
        self._address: str | None = None
        self._channel = channel(config.router, config.channel, tls=tls)
        self._telemetry = GatewayTelemetry(telemetry or Telemetry(TelemetryConfig(), "gateway", scrape=True))
        router = RouterClient(self._channel)
        self.session = RouterSession(
            router,
            config.client_id,
            SessionLimits(
                router_wait_s=config.router_wait_s,
                outage_limit_s=config.router_outage_limit_s,
                adoption_grace_s=config.adoption_grace_s,
                reconnect_max_s=config.reconnect_max_s,
            ),
            on_reattach=self._telemetry.reattached,
        )
        self.admission = Admission(config.max_live_requests)
        keys = ApiKeys(config.api_keys)
        fleet = Fleet(router, self._telemetry, cache_ms=config.fleet_cache_ms)
        pages = Pages(config, self.session, fleet, keys, self.admission, self._telemetry)

        def generate(endpoint: Endpoint) -> GenerateApp:
            return GenerateApp(endpoint, config, self.session, keys, self.admission, self._telemetry)

        self._http = _HttpServer(
            build_routes(pages, generate, self._telemetry), drain_limit_s=config.drain_limit_s
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Where HTTP is served, with the real port."""
        if self._address is None:
            raise RuntimeError("the gateway has not been started")
        return self._address

    @property
    def url(self) -> str:
        """The address as an HTTP URL."""
        return f"http://{self.address}"

    @property
    def connections(self) -> int:
        """Open HTTP connections."""
        return len(self._http.server_state.connections)

    async def wait_failed(self) -> None:
        """Wait until a part of the gateway ends that should not. Raises what it ended with."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise RuntimeError("a part of the gateway ended by itself")

    async def drain(self) -> None:
        """Refuse new requests, let running ones end up to the limit, cancel the rest."""
        if self.admission.draining:
            return
        self.admission.draining = True
        log.info("draining", extra={"live": self.admission.live})
        serving = self._tasks[-1]
        self._http.stop()
        await asyncio.wait([serving])
        await self.session.flush(_LAST_CANCELS_S)

    async def __aenter__(self) -> Self:
        listener, self._address = _listen(self._config.listen)
        self._tasks = [
            asyncio.create_task(self.session.run(), name="router session"),
            asyncio.create_task(self._http.serve_on(listener), name="http"),
        ]
        await self._http.listening(self._tasks[-1])
        if self._config.address_file is not None:
            _write_whole(self._config.address_file, self.address)
        log.info("listening", extra={"address": self.address, "router": self._config.router})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._channel.close()
        if self._config.address_file is not None:
            self._config.address_file.unlink(missing_ok=True)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process's frame knows when to end."""

    def __init__(self, app: object, *, drain_limit_s: float) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
            timeout_keep_alive=75,
        )
        super().__init__(config)
        self._drain_limit_s = drain_limit_s
        self._stopping = asyncio.Event()

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve until `stop`."""
        await self.serve(sockets=[listener])

    async def listening(self, serving: "asyncio.Task[None]") -> None:
        """Wait until connections are taken."""
        while not self.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        if serving.done():
            serving.result()

    async def main_loop(self) -> None:
        """Tick as uvicorn does, but end at once when told to."""
        tick = 0
        while not await self.on_tick(tick):
            tick = (tick + 1) % 864_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Stop listening, and end once running requests have ended or the limit is over."""
        # uvicorn takes whole seconds by its type, and any number by its code.
        self.config.timeout_graceful_shutdown = self._drain_limit_s  # type: ignore[assignment]
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def run(config: GatewayServiceConfig, process: Process) -> None:
    """Serve until the process is told to end, then drain."""
    async with GatewayApp(config.gateway, tls=config.tls, telemetry=process.telemetry) as app:
        failed = asyncio.create_task(app.wait_failed())
        ended = asyncio.create_task(process.shutdown.wait())
        await asyncio.wait([failed, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if failed.done():
            failed.result()
        failed.cancel()


def _listen(address: str) -> tuple[socket.socket, str]:
    """A bound socket, and the address with the real port. Raises ConfigError when it cannot be had."""
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            Path(path).unlink(missing_ok=True)
            listener.bind(path)
            return listener, address
        port = int(address.rpartition(":")[2])
        host = host_of(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
        return listener, with_port(address, listener.getsockname()[1])
    except ValueError:
        raise ConfigError(
            [f"gateway.listen: write it as host:port or unix:/path (got {address!r})"]
        ) from None
    except OSError as error:
        raise ConfigError(
            [f"gateway.listen: cannot listen on {address}: {error.strerror or error}"]
        ) from None


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees the whole text or no file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
