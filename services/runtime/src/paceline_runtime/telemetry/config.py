"""The `telemetry` section."""

from pydantic import Field

from paceline_runtime.config_model import ConfigModel


class TelemetryConfig(ConfigModel):
    """Where traces and metrics go. Nothing set: nowhere."""

    otlp_endpoint: str | None = None
    """`http://host:port` of an OpenTelemetry collector (OTLP over gRPC; `https://` for TLS). Not set: no traces."""
    prometheus_listen: str | None = None
    """`host:port` on which `/metrics` is served for Prometheus. Not set: not served."""
    sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of traces that are recorded when the caller did not decide; 0 to 1."""
    export_timeout_s: float = Field(default=3.0, gt=0)
    """Seconds to wait for the collector before a batch is dropped."""
    metric_interval_s: float = Field(default=10.0, gt=0)
    """Seconds between two metric exports over OTLP."""
    span_queue_size: int = Field(default=4096, ge=1)
    """Finished spans kept while they wait for the collector; more are dropped and counted."""
    label_limit: int = Field(default=100, ge=1)
    """Distinct values of a label that comes from outside (tenant, app, model, engine); later ones become `other`."""
