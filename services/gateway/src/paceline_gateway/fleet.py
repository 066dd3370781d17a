"""What the gateway tells about the fleet, from the router: models, readiness, the dashboard's numbers."""

import asyncio
import time
from typing import Any

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import router_pb2 as pb
from paceline_gateway.router_client import RouterClient
from paceline_gateway.slo_declaration import reply_headers
from paceline_gateway.telemetry import GatewayTelemetry
from paceline_runtime.errors import PacelineError, Reason

_LIVE_ROWS = 100


class Fleet:
    """The router's view of its engines, kept for `cache_ms`."""

    def __init__(self, router: RouterClient, telemetry: GatewayTelemetry, *, cache_ms: float) -> None:
        self._router = router
        self._telemetry = telemetry
        self._cache_s = cache_ms / 1000
        self._lock = asyncio.Lock()
        self._engines: list[pb.EngineRecord] = []
        self._asked_at = float("-inf")
        self._started = int(time.time())

    async def engines(self) -> list[pb.EngineRecord]:
        """All engines the router knows. Raises PacelineError."""
        async with self._lock:
            now = time.monotonic()
            if now - self._asked_at >= self._cache_s:
                self._engines = list((await self._router.list_engines()).engines)
                self._asked_at = now
            return self._engines

    async def ready(self) -> bool:
        """Whether some engine takes requests."""
        try:
            return any(engine.state == pb.ENGINE_STATE_UP for engine in await self.engines())
        except PacelineError:
            return False

    async def models(self) -> dict[str, Any]:
        """OpenAI's list of models. Raises PacelineError."""
        served = [engine.capabilities for engine in await self.engines() if engine.capabilities.model]
        models = [self._model(name) for name in sorted({own.model for own in served})]
        adapters = {adapter: own.model for own in served for adapter in own.adapters}
        models += [{**self._model(name), "parent": model} for name, model in sorted(adapters.items())]
        return {"object": "list", "data": models}

    async def model(self, name: str) -> dict[str, Any]:
        """One model of the list. Raises PacelineError UNKNOWN_MODEL."""
        for model in (await self.models())["data"]:
            if model["id"] == name:
                found: dict[str, Any] = model
                return found
        raise PacelineError(Reason.UNKNOWN_MODEL, f"the model {name[:200]!r} is not served here")

    async def overview(self, tenant: str) -> dict[str, Any]:
        """What the dashboard shows. Raises PacelineError."""
        engines = await self.engines()
        live = await self._router.list_live(tenant, _LIVE_ROWS)
        return {
            "engines": [_engine(engine) for engine in engines],
            "requests": [_request(record) for record in live.requests],
            "attainment": self._telemetry.attainment(),
        }

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "paceline"}


def _engine(engine: pb.EngineRecord) -> dict[str, Any]:
    capabilities = engine.capabilities
    return {
        "engine_id": engine.engine_id,
        "state": pb.EngineState.Name(engine.state).removeprefix("ENGINE_STATE_").lower(),
        "model": capabilities.model,
        "device": capabilities.device,
        "queued": engine.queued,
        "running": engine.running,
        "paused": engine.paused,
        "max_batch": capabilities.max_batch,
        "kv_used_tokens": engine.kv_used_tokens,
        "kv_capacity_tokens": capabilities.kv_capacity_tokens,
        "tokens_per_s": round(engine.tokens_per_s, 1),
        "load_age_ms": round(engine.load_age_ms, 1),
    }


def _request(record: pb.RequestRecord) -> dict[str, Any]:
    attempt = record.attempts[-1] if record.attempts else None
    return {
        "request_id": record.request_id,
        "app": record.app,
        "state": attempt_pb2.RequestState.Name(record.state).removeprefix("REQUEST_STATE_").lower(),
        "slo": reply_headers(record.slo),
        "engine_id": attempt.engine_id if attempt is not None else "",
        "attempts": len(record.attempts),
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "arrived_unix_ms": record.arrived_unix_ms,
    }
