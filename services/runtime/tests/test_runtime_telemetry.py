"""Traces through two hops to a real OTLP receiver, metrics by HTTP, and a back end that is down."""

import asyncio
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from paceline_runtime.channel import channel
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.server import Server, ServerConfig
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.export import DropCount
from paceline_runtime.telemetry.propagation import extract, inject
from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.telemetry.sql import trace_statements


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.spans: list = []
        self.metrics: set[str] = set()
        self.got_metrics = threading.Event()


class TraceReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector):
        self.collector = collector

    def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.collector.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


class MetricReceiver(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, collector):
        self.collector = collector

    def Export(self, request, context):
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.collector.metrics.update(metric.name for metric in scope.metrics)
        self.collector.got_metrics.set()
        return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.fixture
def collector():
    """A real OTLP receiver over a loopback socket."""
    received = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(TraceReceiver(received), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(MetricReceiver(received), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    received.endpoint = f"http://127.0.0.1:{port}"
    yield received
    server.stop(None).wait(5)


async def test_one_trace_goes_through_two_hops(collector, echo, add_echo_to, echo_stub):
    telemetry = Telemetry(TelemetryConfig(otlp_endpoint=collector.endpoint), "test")
    back = Server(ServerConfig(), telemetry=telemetry)
    back.add(add_echo_to, echo)
    middle_echo = type(echo)()
    middle = Server(ServerConfig(), telemetry=telemetry)
    middle.add(add_echo_to, middle_echo)
    async with back, middle, channel(back.address) as inner, channel(middle.address) as outer:

        async def forward(request):
            return await echo_stub(inner).unary(request)

        middle_echo.behaviour = forward
        with telemetry.tracer.start_as_current_span("client"):
            assert await echo_stub(outer).unary(b"", metadata=(("x-request-id", "r1"),)) == b"r1|"
        echo.behaviour = fail_internal
        with pytest.raises(grpc.aio.AioRpcError):
            await echo_stub(outer).unary(b"")
    await asyncio.to_thread(telemetry.shutdown)
    client = next(span for span in collector.spans if span.name == "client")
    hops = [span for span in collector.spans if span.trace_id == client.trace_id and span is not client]
    assert len(hops) == 2
    first = next(span for span in hops if span.parent_span_id == client.span_id)
    second = next(span for span in hops if span.parent_span_id == first.span_id)
    attributes = {item.key: item.value for item in second.attributes}
    assert attributes[names.ATTR_REQUEST_ID].string_value == "r1"
    assert attributes[names.RPC_METHOD].string_value == "Unary"
    assert attributes[names.RPC_STATUS_CODE].int_value == 0
    failed = [span for span in collector.spans if span.trace_id != client.trace_id]
    assert [span.status.code for span in failed] == [2, 2]
    assert "paceline_rpc_duration" in collector.metrics


async def fail_internal(_):
    raise PacelineError(Reason.INTERNAL, "broken")


async def test_rpc_metrics_count_calls_by_code(echo, add_echo_to, echo_stub):
    telemetry = Telemetry(TelemetryConfig(prometheus_listen="127.0.0.1:0"), "test")
    server = Server(ServerConfig(), telemetry=telemetry)
    server.add(add_echo_to, echo)
    async with server, channel(server.address) as opened:
        stub = echo_stub(opened)
        await stub.unary(b"")
        echo.behaviour = fail_internal
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.unary(b"")
        call = stub.forever()
        await call.write(b"x")
        await asyncio.wait_for(echo.started.wait(), 10)
    page = await asyncio.to_thread(scrape, telemetry.prometheus_port)
    assert telemetry.prometheus_text().decode().count("\n") == page.count("\n")
    await asyncio.to_thread(telemetry.shutdown)
    label = 'method="Unary",service="test.v1.EchoService"'
    assert f'paceline_rpc_duration_seconds_count{{code="OK",{label}}} 1.0' in page
    assert f'paceline_rpc_duration_seconds_count{{code="INTERNAL",{label}}} 2.0' in page
    assert f"paceline_rpcs_in_flight{{{label}}} 0.0" in page


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        return response.read().decode()


def test_back_end_that_is_down_costs_drops_not_time():
    config = TelemetryConfig(
        otlp_endpoint="http://127.0.0.1:1",
        export_timeout_s=0.2,
        span_queue_size=10,
        prometheus_listen="127.0.0.1:0",
    )
    telemetry = Telemetry(config, "test")
    for _ in range(50):
        telemetry.tracer.start_span("lost").end()
    telemetry.tracer_provider.force_flush(5000)
    before = telemetry.drops.counts()
    assert before["traces", "queue_full"] + before["traces", "export_failed"] == 50
    assert before["traces", "queue_full"] >= 1
    page = scrape(telemetry.prometheus_port)
    assert 'paceline_telemetry_dropped_total{reason="export_failed",signal="traces"}' in page
    started = time.monotonic()
    telemetry.shutdown()
    # Not a speed: a shutdown that waits for the collector takes as long as the exporter retries, over half a minute.
    assert time.monotonic() - started < 20
    assert telemetry.drops.counts()["metrics", "export_failed"] >= 1


def test_without_config_nothing_is_kept():
    telemetry = Telemetry(TelemetryConfig(), "test")
    with telemetry.tracer.start_as_current_span("x"):
        assert inject() == ""
    telemetry.instruments.add(names.CREDIT_STALLS)
    assert telemetry.prometheus_text() == b""
    telemetry.shutdown()


def test_traceparent_goes_into_a_message_and_back(collector):
    telemetry = Telemetry(TelemetryConfig(otlp_endpoint=collector.endpoint), "test")
    with telemetry.tracer.start_as_current_span("sender") as sender:
        carried = inject()
    with telemetry.tracer.start_as_current_span("receiver", context=extract(carried)) as receiver:
        assert receiver.get_span_context().trace_id == sender.get_span_context().trace_id
    for nothing in ("", "00-zz", "x" * 1000):
        with telemetry.tracer.start_as_current_span("root", context=extract(nothing)) as root:
            assert root.parent is None
    telemetry.shutdown()


def test_labels_from_outside_are_capped():
    telemetry = Telemetry(TelemetryConfig(label_limit=3), "test", scrape=True)
    for number in range(10):
        telemetry.instruments.add(names.REQUESTS_REFUSED, tenant=f"t{number}", reason="QUEUE_FULL")
    page = telemetry.prometheus_text().decode()
    assert 'paceline_requests_refused_total{reason="QUEUE_FULL",tenant="other"} 7.0' in page
    assert 'tenant="t2"' in page
    assert 'tenant="t3"' not in page
    assert 'paceline_telemetry_labels_capped_total{label="tenant"} 7.0' in page
    telemetry.shutdown()


def test_instruments_refuse_what_the_list_does_not_have():
    telemetry = Telemetry(TelemetryConfig(), "test", scrape=True)
    with pytest.raises(TypeError, match="no label colour"):
        telemetry.instruments.add(names.REQUESTS, colour="red")
    with pytest.raises(TypeError, match="is a counter"):
        telemetry.instruments.record(names.REQUESTS, 1.0)
    telemetry.instruments.observe(names.ENGINES, lambda: [(2, {"state": "live"}), (1, {"state": "lost"})])
    telemetry.instruments.record(names.TTFT, 0.02, model="m", slo_class="latency")
    page = telemetry.prometheus_text().decode()
    assert 'paceline_engines{state="live"} 2.0' in page
    assert 'paceline_ttft_seconds_bucket{le="0.025",model="m",slo_class="latency"} 1.0' in page
    telemetry.shutdown()


def test_names_are_unique_and_prefixed():
    metric_names = [metric.name for metric in names.METRICS]
    assert len(metric_names) == len(set(metric_names)) > 30
    assert all(
        name.startswith("paceline_") and not name.endswith(("_total", "_seconds")) for name in metric_names
    )


def test_sql_statements_are_traced(collector):
    telemetry = Telemetry(TelemetryConfig(otlp_endpoint=collector.endpoint), "test")
    engine = create_engine("sqlite://")
    trace_statements(telemetry, engine)
    with engine.connect() as connection, telemetry.tracer.start_as_current_span("request"):
        connection.execute(text("select :secret + 1"), {"secret": 41})
        with pytest.raises(OperationalError):
            connection.execute(text("select * from missing"))
    telemetry.shutdown()
    request = next(span for span in collector.spans if span.name == "request")
    good, bad = (span for span in collector.spans if span.parent_span_id == request.span_id)
    attributes = {item.key: item.value.string_value for item in good.attributes}
    assert good.name == "SELECT"
    assert attributes == {"db.system.name": "sqlite", "db.query.text": "select ? + 1"}
    assert (good.status.code, bad.status.code) == (0, 2)
    assert bad.status.message == "OperationalError"


def test_taken_metrics_port_is_a_config_error():
    first = Telemetry(TelemetryConfig(prometheus_listen="127.0.0.1:0"), "test")
    with pytest.raises(ConfigError, match="prometheus_listen"):
        Telemetry(TelemetryConfig(prometheus_listen=f"127.0.0.1:{first.prometheus_port}"), "test")
    with pytest.raises(ConfigError, match="host:port"):
        Telemetry(TelemetryConfig(prometheus_listen="here"), "test")
    first.shutdown()


def test_drop_warning_is_rate_limited(caplog):
    drops = DropCount()
    for _ in range(100):
        drops.add("traces", "queue_full")
    assert len(caplog.records) == 1
    assert drops.counts() == {("traces", "queue_full"): 100}
