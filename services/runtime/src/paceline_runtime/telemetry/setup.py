"""Starts and stops the tracer and meter of a process. A back end that is down costs dropped items, never time."""

import logging
import threading
from collections.abc import Iterable, Mapping

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, MeterProvider, NoOpMeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracerProvider, TracerProvider
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from paceline_runtime.address import host_of
from paceline_runtime.config_model import ConfigError
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.export import BoundedSpanProcessor, CountingMetricExporter, DropCount
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import TELEMETRY_DROPPED

_SCOPE = "paceline"


class Telemetry:
    """Tracer and metrics of one process. With an empty config all of it is free and does nothing.

    `scrape` forces metrics to be kept even if no exporter wants them, for a service that serves `/metrics` itself.
    """

    def __init__(
        self, config: TelemetryConfig, service: str, *, instance: str = "", scrape: bool = False
    ) -> None:
        self.drops = DropCount()
        resource = Resource.create(
            {"service.name": f"paceline-{service}", "service.instance.id": instance or service}
        )
        self._registry: CollectorRegistry | None = None
        self._close_http: list[tuple[object, threading.Thread]] = []
        self._traces = _tracer_provider(config, resource, self.drops)
        self._metrics = self._meter_provider(config, resource, scrape)
        self.tracer_provider: TracerProvider = self._traces or NoOpTracerProvider()
        self.meter_provider: MeterProvider = self._metrics or NoOpMeterProvider()
        self.tracer = self.tracer_provider.get_tracer(_SCOPE)
        self.meter = self.meter_provider.get_meter(_SCOPE)
        self.instruments = Instruments(self.meter, label_limit=config.label_limit)
        self.meter.create_observable_counter(
            TELEMETRY_DROPPED.name, [self._dropped], TELEMETRY_DROPPED.unit, TELEMETRY_DROPPED.description
        )
        self.prometheus_port: int | None = None
        if config.prometheus_listen is not None:
            self._serve_prometheus(config.prometheus_listen)

    def prometheus_text(self) -> bytes:
        """All metrics in the Prometheus text format; empty when none are kept."""
        return b"" if self._registry is None else generate_latest(self._registry)

    def shutdown(self) -> None:
        """Send what is left and stop. Takes at most a few times the export timeout, so call it off the event loop."""
        for server, thread in self._close_http:
            server.shutdown()  # type: ignore[attr-defined]
            server.server_close()  # type: ignore[attr-defined]
            thread.join(timeout=2)
        self._close_http.clear()
        if self._traces is not None:
            self._traces.shutdown()
        if self._metrics is not None:
            self._metrics.shutdown()

    def _meter_provider(
        self, config: TelemetryConfig, resource: Resource, scrape: bool
    ) -> SdkMeterProvider | None:
        readers: list[MetricReader] = []
        if config.otlp_endpoint is not None:
            exporter = OTLPMetricExporter(
                endpoint=config.otlp_endpoint,
                insecure=_insecure(config.otlp_endpoint),
                timeout=config.export_timeout_s,
            )
            readers.append(
                PeriodicExportingMetricReader(
                    CountingMetricExporter(exporter, self.drops),
                    export_interval_millis=config.metric_interval_s * 1000,
                    export_timeout_millis=config.export_timeout_s * 1000,
                )
            )
        if scrape or config.prometheus_listen is not None:
            self._registry = CollectorRegistry()
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=self._registry))
        return (
            SdkMeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
            if readers
            else None
        )

    def _serve_prometheus(self, listen: str) -> None:
        port = listen.rpartition(":")[2]
        if not port.isdigit() or self._registry is None:
            raise ConfigError([f"telemetry.prometheus_listen: write it as host:port (got {listen!r})"])
        try:
            server, thread = start_http_server(int(port), host_of(listen) or "127.0.0.1", self._registry)
        except OSError as error:
            raise ConfigError(
                [f"telemetry.prometheus_listen: cannot listen on {listen}: {error.strerror or error}"]
            ) from None
        self.prometheus_port = server.server_port
        self._close_http.append((server, thread))

    def _dropped(self, _: CallbackOptions) -> Iterable[Observation]:
        for (signal, reason), count in self.drops.counts().items():
            labels: Mapping[str, str] = {"signal": signal, "reason": reason}
            yield Observation(count, labels)


def _tracer_provider(
    config: TelemetryConfig, resource: Resource, drops: DropCount
) -> SdkTracerProvider | None:
    if config.otlp_endpoint is None:
        return None
    # The exporter logs every failed try; the drop counter warns once a minute.
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(
        endpoint=config.otlp_endpoint,
        insecure=_insecure(config.otlp_endpoint),
        timeout=config.export_timeout_s,
    )
    provider = SdkTracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)), resource=resource, shutdown_on_exit=False
    )
    provider.add_span_processor(BoundedSpanProcessor(exporter, drops, config.span_queue_size))
    return provider


def _insecure(endpoint: str) -> bool:
    return not endpoint.startswith("https://")
