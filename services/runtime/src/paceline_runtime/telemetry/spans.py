"""Spans of work that begins in one message and ends in another, as everything on a multiplexed stream does."""

from collections import OrderedDict
from collections.abc import Mapping

from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from paceline_runtime.telemetry.propagation import TRACEPARENT_KEY, extract

_propagator = TraceContextTextMapPropagator()


def traceparent_of(span: Span) -> str:
    """The span's context as W3C traceparent, for a message."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, set_span_in_context(span))
    return carrier.get(TRACEPARENT_KEY, "")


class OpenSpans:
    """Open spans by key. At most `limit`: beyond it the oldest one is ended as it is.

    Only work that arrives with a trace gets a span, so what nobody traces costs a test of a string.
    """

    def __init__(self, name: str, tracer: Tracer | None = None, *, limit: int = 100_000) -> None:
        self._name = name
        self._tracer = tracer or NoOpTracer()
        self._limit = limit
        self._open: OrderedDict[int, Span] = OrderedDict()

    def begin(self, key: int, traceparent: str, attributes: Mapping[str, AttributeValue]) -> str:
        """Begin a child of `traceparent`; what to pass on as the parent of what comes next."""
        if not traceparent:
            return ""
        if key in self._open:  # said again, e.g. after a stream broke
            return traceparent_of(self._open[key])
        span = self._tracer.start_span(self._name, context=extract(traceparent), kind=SpanKind.CONSUMER)
        if not span.is_recording():
            return traceparent
        span.set_attributes(attributes)
        self._open[key] = span
        if len(self._open) > self._limit:
            self._open.popitem(last=False)[1].end()
        return traceparent_of(span)

    def end(self, key: int, attributes: Mapping[str, AttributeValue], error: str = "") -> None:
        """End the span of `key`, if it has one; `error` says what went wrong."""
        span = self._open.pop(key, None)
        if span is None:
            return
        span.set_attributes(attributes)
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end()
