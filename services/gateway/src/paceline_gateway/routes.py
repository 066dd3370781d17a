"""All HTTP routes, as one Starlette application."""

import logging
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline_gateway.api_keys import ApiKeys
from paceline_gateway.config import GatewayConfig
from paceline_gateway.fleet import Fleet
from paceline_gateway.generate import CHAT, COMPLETIONS, Admission, GenerateApp
from paceline_gateway.openai_errors import error_response
from paceline_gateway.router_session import RouterSession
from paceline_gateway.telemetry import GatewayTelemetry
from paceline_runtime import rpc_context
from paceline_runtime.errors import PacelineError, Reason

log = logging.getLogger(__name__)

_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Endpoint = Callable[[Request], Awaitable[Response]]


class Pages:
    """The routes that answer at once."""

    def __init__(
        self,
        config: GatewayConfig,
        session: RouterSession,
        fleet: Fleet,
        keys: ApiKeys,
        admission: Admission,
        telemetry: GatewayTelemetry,
    ) -> None:
        self._config = config
        self._session = session
        self._fleet = fleet
        self._keys = keys
        self._admission = admission
        self._telemetry = telemetry
        self._dashboard = resources.files("paceline_gateway").joinpath("dashboard.html").read_text("utf-8")

    async def dashboard(self, request: Request) -> Response:
        """The page; it holds no data, and asks `/api/fleet` for it with the key that its reader enters."""
        return HTMLResponse(self._dashboard, headers=_PAGE_HEADERS)

    async def fleet(self, request: Request) -> Response:
        """The dashboard's numbers: the fleet, and the live requests of the caller's tenant."""
        tenant = self._keys.tenant_of(request.headers)
        return JSONResponse(await self._fleet.overview(tenant))

    async def models(self, request: Request) -> Response:
        """The models that are served."""
        self._keys.tenant_of(request.headers)
        return JSONResponse(await self._fleet.models())

    async def model(self, request: Request) -> Response:
        """One model."""
        self._keys.tenant_of(request.headers)
        return JSONResponse(await self._fleet.model(request.path_params["name"]))

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok")

    async def readyz(self, request: Request) -> Response:
        """New requests can be served: not draining, the router is there, and some engine is up."""
        if self._admission.draining:
            problem = "draining"
        elif not self._session.connected:
            problem = "the router cannot be reached"
        elif not await self._fleet.ready():
            problem = "no engine is up"
        else:
            return PlainTextResponse("ready")
        return PlainTextResponse(problem, status_code=503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics."""
        if self._config.metrics_need_key:
            self._keys.tenant_of(request.headers)
        return Response(
            self._telemetry.prometheus_text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def build_routes(
    pages: Pages, generate: Callable[[Any], GenerateApp], telemetry: GatewayTelemetry
) -> ASGIApp:
    """The application. Every error it answers with has OpenAI's shape."""
    routes = [
        Route("/", pages.dashboard),
        Route("/api/fleet", pages.fleet),
        Route("/v1/chat/completions", generate(CHAT), methods=["POST"]),
        Route("/v1/completions", generate(COMPLETIONS), methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
        Route("/healthz", pages.healthz),
        Route("/readyz", pages.readyz),
        Route("/metrics", pages.metrics),
    ]
    app = Starlette(
        routes=routes, exception_handlers={PacelineError: _on_error, HTTPException: _on_http_exception}
    )
    return Edge(app, telemetry)


class Edge:
    """Outermost layer: counts answers, turns unexpected errors into a 500, and knows how to drop a connection."""

    def __init__(self, app: ASGIApp, telemetry: GatewayTelemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # With a client that does not read, a close waits for the buffer to empty; only an abort ends that.
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        scope["paceline.abort"] = getattr(transport, "abort", None)
        status = 0

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            error_id = rpc_context.new_request_id()[:12]
            log.exception("unexpected error", extra={"path": scope["path"], "error_id": error_id})
            if status:
                raise
            failure = PacelineError(Reason.INTERNAL, f"internal error {error_id}; the gateway's log has it")
            await error_response(failure)(scope, receive, counting_send)
        finally:
            if status:
                self._telemetry.answered(_route_label(scope), status)


def _route_label(scope: Scope) -> str:
    route = scope.get("route")
    return route.path if isinstance(route, Route) else "other"


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PacelineError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        failure = PacelineError(Reason.NOT_FOUND, f"there is no {request.method} {request.url.path[:200]}")
    else:
        failure = PacelineError(
            Reason.INVALID_ARGUMENT, f"{request.method} {request.url.path[:200]}: {error.detail}"
        )
    response = error_response(failure)
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response
