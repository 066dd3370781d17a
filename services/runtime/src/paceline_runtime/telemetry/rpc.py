"""Server layer that traces and times RPCs: one span and one duration per call, nothing per message.

Written here because the published gRPC instrumentation steps through every message of a stream.
"""

import asyncio
import time
from typing import Any

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from paceline_runtime import rpc_context
from paceline_runtime.interceptor import Call, RpcInfo, ServicerContext
from paceline_runtime.layers import HEALTH_SERVICE
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.propagation import TRACEPARENT_KEY, extract
from paceline_runtime.telemetry.setup import Telemetry

_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class RpcTelemetry:
    """The layer. Health checks are left out: they say nothing about requests."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        self._instruments = telemetry.instruments

    async def __call__(self, info: RpcInfo, context: ServicerContext, call: Call) -> Any:
        """Serve the call inside a span that continues the caller's trace."""
        if info.service == HEALTH_SERVICE:
            return await call()
        where = {"service": info.service, "method": info.method}
        self._instruments.add(names.RPCS_IN_FLIGHT, 1, **where)
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            with self._tracer.start_as_current_span(
                f"{info.service}/{info.method}",
                context=extract(info.text(TRACEPARENT_KEY)),
                kind=SpanKind.SERVER,
                attributes={
                    names.RPC_SYSTEM: "grpc",
                    names.RPC_SERVICE: info.service,
                    names.RPC_METHOD: info.method,
                    names.ATTR_REQUEST_ID: rpc_context.request_id(),
                },
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    result = await call()
                    code = _code(context, grpc.StatusCode.OK)
                    return result
                except asyncio.CancelledError:
                    late = context.time_remaining() == 0
                    code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                    raise
                except BaseException:
                    code = _code(context, grpc.StatusCode.UNKNOWN)
                    raise
                finally:
                    span.set_attribute(names.RPC_STATUS_CODE, code.value[0])
                    if code in _SERVER_FAULTS:
                        span.set_status(Status(StatusCode.ERROR, code.name))
        finally:
            self._instruments.add(names.RPCS_IN_FLIGHT, -1, **where)
            self._instruments.record(names.RPC_DURATION, time.monotonic() - started, **where, code=code.name)


def _code(context: ServicerContext, unset: grpc.StatusCode) -> grpc.StatusCode:
    """The code that the handler or the error mapping set."""
    code: grpc.StatusCode | None = context.code()
    return unset if code is None else code
