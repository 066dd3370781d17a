"""Exporters that give up instead of waiting, and count what they gave up."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

log = logging.getLogger(__name__)

_WARN_EVERY_S = 60.0


class DropCount:
    """Telemetry items given up, by (signal, reason). Shared between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._warned_at = float("-inf")

    def add(self, signal: str, reason: str, count: int = 1) -> None:
        """Count dropped items, and warn now and then."""
        with self._lock:
            self._counts[signal, reason] = self._counts.get((signal, reason), 0) + count
            warn = time.monotonic() - self._warned_at >= _WARN_EVERY_S
            if warn:
                self._warned_at = time.monotonic()
        if warn:
            log.warning("telemetry dropped", extra={"signal": signal, "drop_reason": reason, "count": count})

    def counts(self) -> dict[tuple[str, str], int]:
        """All counts so far."""
        with self._lock:
            return dict(self._counts)


class CountingSpanExporter(SpanExporter):
    """Passes spans on; those that the back end did not take are dropped and counted."""

    def __init__(self, inner: SpanExporter, drops: DropCount, taken: Callable[[int], None]) -> None:
        self._inner = inner
        self._drops = drops
        self._taken = taken

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export one batch. Runs in the processor's thread."""
        self._taken(len(spans))
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._drops.add("traces", "export_failed", len(spans))
        return result

    def shutdown(self) -> None:
        """Stop, without waiting for a back end that is down."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return self._inner.force_flush(timeout_millis)


class BoundedSpanProcessor(BatchSpanProcessor):
    """A batch processor that counts the spans for which its queue has no room."""

    def __init__(self, exporter: SpanExporter, drops: DropCount, queue_size: int) -> None:
        self._drops = drops
        self._room = queue_size
        self._room_lock = threading.Lock()
        super().__init__(
            CountingSpanExporter(exporter, drops, self._taken),
            max_queue_size=queue_size,
            max_export_batch_size=min(512, queue_size),
            schedule_delay_millis=1000,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished span, or drop it."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        with self._room_lock:
            full = self._room <= 0
            if not full:
                self._room -= 1
        if full:
            self._drops.add("traces", "queue_full")
        else:
            super().on_end(span)

    def _taken(self, count: int) -> None:
        with self._room_lock:
            self._room += count


class CountingMetricExporter(MetricExporter):
    """Passes metrics on; a collection that the back end did not take is counted (the next one has the sums anyway)."""

    def __init__(self, inner: MetricExporter, drops: DropCount) -> None:
        super().__init__(
            preferred_temporality=inner._preferred_temporality,
            preferred_aggregation=inner._preferred_aggregation,
        )
        self._inner = inner
        self._drops = drops

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Export one collection. Runs in the reader's thread."""
        result = self._inner.export(metrics_data, timeout_millis, **kwargs)
        if result is not MetricExportResult.SUCCESS:
            self._drops.add("metrics", "export_failed")
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is kept here."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Stop, without waiting for a back end that is down."""
        self._inner.shutdown(timeout_millis, **kwargs)
