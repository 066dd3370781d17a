"""grpc.health.v1 with three kinds of names: `liveness`, `readiness`, and the full names of the services."""

from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LIVENESS = "liveness"
READINESS = "readiness"
OVERALL = ""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Health of one server.

    Liveness is SERVING as long as the process answers at all: a drain, or a dependency that is down, must not
    get it killed. Readiness, and with it the services' own names, says whether new work is welcome.
    """

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()
        self._services: list[str] = []
        self._ready = False
        self._ending = False

    @property
    def ready(self) -> bool:
        """Whether the server takes new work."""
        return self._ready

    def add_to(self, server: Any) -> None:
        """Register the health service on a gRPC server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self, services: list[str]) -> None:
        """Announce liveness, and not yet readiness, for these full service names."""
        self._services = list(services)
        await self._servicer.set(LIVENESS, _SERVING)
        await self.set_ready(self._ready)

    async def set_ready(self, ready: bool) -> None:
        """Say whether new work is welcome. May be called again at any time, and is not heard after `end`."""
        self._ready = ready and not self._ending
        status = _SERVING if self._ready else _NOT_SERVING
        for name in (READINESS, OVERALL, *self._services):
            await self._servicer.set(name, status)

    async def end(self) -> None:
        """Not ready from here on, whatever is said later: the server drains."""
        self._ending = True
        await self.set_ready(False)
