"""The gRPC server of every service: health, reflection, errors, authentication, telemetry, drain."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc_reflection.v1alpha import reflection
from pydantic import Field

from paceline_runtime.address import with_port
from paceline_runtime.auth import AuthConfig, authenticator
from paceline_runtime.config_model import ConfigError, ConfigModel
from paceline_runtime.grpc_options import GrpcConfig, server_options
from paceline_runtime.health import Health
from paceline_runtime.interceptor import Layer, LayeredInterceptor
from paceline_runtime.layers import HEALTH_SERVICE, InFlight, UnaryDeadline, map_errors, request_context
from paceline_runtime.shutdown import Shutdown
from paceline_runtime.telemetry.rpc import RpcTelemetry
from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.tls import TlsConfig, server_credentials

log = logging.getLogger(__name__)

S = TypeVar("S")

# For answers on their way out, open health watches, and handlers that are slow to notice that they were cancelled.
_LAST_GRACE_S = 0.5


class ServerConfig(ConfigModel):
    """One listening gRPC server."""

    listen: str = "127.0.0.1:0"
    """Address: `host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose a free one."""
    address_file: Path | None = None
    """File into which the address is written once the server listens; for whoever started it with port 0."""
    reflection: bool = True
    """Whether clients may ask for the services and messages, as grpcurl does."""
    unary_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a call without streams is ended, whatever deadline its caller set."""
    drain_grace_s: float = Field(default=10.0, ge=0)
    """Seconds that running calls get to end when the server shuts down; then they are cancelled."""
    grpc: GrpcConfig = GrpcConfig()
    """Transport settings."""


class Server:
    """A gRPC server with everything a Paceline service needs.

    `add` services, then `start`, then `health.set_ready(True)`; or let `serve` do it all. `address` is known after
    `start`.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        tls: TlsConfig | None = None,
        auth: AuthConfig | None = None,
        telemetry: Telemetry | None = None,
        unbounded: frozenset[str] = frozenset(),
    ) -> None:
        """`unbounded`: names of methods without streams that bound themselves, and may take longer than others.

        Raises ConfigError when the address would be open to others without authentication."""
        tls = tls or TlsConfig()
        self.health = Health()
        self._config = config
        self._credentials = server_credentials(tls)
        self._in_flight = InFlight()
        self._on_drain: list[Callable[[], Awaitable[None]]] = []
        self._services: list[str] = []
        self._address: str | None = None
        self._stopped = False
        layers: list[Layer] = [request_context]
        if telemetry is not None:
            layers.append(RpcTelemetry(telemetry))
        layers += [map_errors, self._in_flight]
        tokens = authenticator(
            auth or AuthConfig(), (config.listen,), callers_have_certificates=tls.client_ca_file is not None
        )
        if tokens is not None:
            layers.append(tokens.layer)
        layers.append(UnaryDeadline(config.unary_timeout_s, unbounded))
        self.grpc = grpc.aio.server(
            interceptors=[LayeredInterceptor(*layers)], options=server_options(config.grpc)
        )
        self.health.add_to(self.grpc)

    def add(self, add_to_server: Callable[[S, Any], None], servicer: S) -> None:
        """Serve `servicer`: `server.add(add_RouterServiceServicer_to_server, RouterService(...))`."""
        add_to_server(servicer, _Registrar(self.grpc, self._services))

    def on_drain(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Await `hook` when a drain begins: say goodbye in sessions, hand over work. It may use the whole grace."""
        self._on_drain.append(hook)

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the services that were added."""
        return tuple(self._services)

    @property
    def address(self) -> str:
        """Where the server listens, with the real port."""
        if self._address is None:
            raise RuntimeError("the server has not been started")
        return self._address

    @property
    def in_flight(self) -> int:
        """RPCs being served now, health checks apart."""
        return self._in_flight.count

    async def start(self) -> None:
        """Listen and answer: alive, not ready yet. Raises ConfigError when the address is taken."""
        listen = self._config.listen
        if self._config.reflection:
            reflection.enable_server_reflection(
                (*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME), self.grpc
            )
        await self.health.start(self._services)
        try:
            if self._credentials is None:
                port = self.grpc.add_insecure_port(listen)
            else:
                port = self.grpc.add_secure_port(listen, self._credentials)
        except RuntimeError as error:
            raise ConfigError([f"server.listen: cannot listen on {listen}: {error}"]) from None
        await self.grpc.start()
        self._address = with_port(listen, port)
        if self._config.address_file is not None:
            _write_whole(self._config.address_file, self._address)
        log.info("listening", extra={"address": self._address, "services": self._services})

    async def drain(self, grace_s: float | None = None) -> None:
        """Stop gracefully: not ready, run the hooks, refuse new calls, let running ones end, then cancel the rest.

        May be called twice; the second call does nothing.
        """
        if self._stopped:
            return
        self._stopped = True
        grace = self._config.drain_grace_s if grace_s is None else grace_s
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace
        await self.health.end()
        self._in_flight.refuse()
        await self._run_hooks(grace)
        if await self._in_flight.wait_idle(max(0.0, ends - loop.time())):
            # The handlers are done, but their last answers may still be on the way out.
            await self.grpc.stop(_LAST_GRACE_S)
        else:
            log.warning("cancelling the last calls", extra={"in_flight": self._in_flight.count})
            await self.grpc.stop(0)
            await self._in_flight.wait_idle(_LAST_GRACE_S)
        if self._config.address_file is not None:
            self._config.address_file.unlink(missing_ok=True)

    async def serve(self, shutdown: Shutdown) -> None:
        """Start, be ready, wait for the end of the process, drain."""
        async with self:
            await self.health.set_ready(True)
            await shutdown.wait()
            await self.drain()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(grace_s=None if error is None else 0)

    async def _run_hooks(self, grace_s: float) -> None:
        for hook in self._on_drain:
            try:
                async with asyncio.timeout(grace_s):
                    await hook()
            except TimeoutError:
                log.warning("a drain hook took longer than the grace", extra={"hook": repr(hook)})
            except Exception:
                log.exception("a drain hook failed", extra={"hook": repr(hook)})


class _Registrar:
    """Stands in for the server while a servicer registers, and notes the name of its service."""

    def __init__(self, server: grpc.aio.Server, services: list[str]) -> None:
        self._server = server
        self._services = services

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = tuple(handlers)
        self._services += [h.service_name() for h in handlers if isinstance(h, grpc.ServiceRpcHandler)]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        self._server.add_registered_method_handlers(service_name, method_handlers)


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees the whole text or no file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
