"""Trace context between processes: a W3C `traceparent` string, in gRPC metadata or inside a message of a session."""

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT_KEY = "traceparent"

_propagator = TraceContextTextMapPropagator()


def inject() -> str:
    """The current trace context as a traceparent; empty when there is none."""
    if not get_current_span().get_span_context().is_valid:
        return ""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(TRACEPARENT_KEY, "")


def extract(traceparent: str) -> Context:
    """The context that a traceparent names, to start a span in; an empty one for an empty or malformed string."""
    return _propagator.extract({TRACEPARENT_KEY: traceparent} if traceparent else {}, context=Context())
