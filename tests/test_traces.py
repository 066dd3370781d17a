"""One request is one trace through every process of the line, as a collector sees it."""

import itertools
import queue
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from stack_process import StackProcess

PATIENCE_S = 100.0
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(TraceServiceServicer):
    """Takes what an OpenTelemetry collector would."""

    def __init__(self) -> None:
        self.spans: queue.Queue[tuple[str, Span]] = queue.Queue()

    def Export(
        self, request: trace.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put((names["service.name"], span))
        return trace.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    taker = Collector()
    add_TraceServiceServicer_to_server(taker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield taker, f"http://127.0.0.1:{port}"
    server.stop(0)


def test_a_request_is_one_trace(collector: tuple[Collector, str], state_dir: Path) -> None:
    taker, endpoint = collector
    stack = StackProcess(state_dir, "up.engines=1", f"telemetry.otlp_endpoint={endpoint}").start()
    try:
        reply = httpx.post(
            f"http://{stack.gateway}/v1/completions",
            json={"model": "tiny", "prompt": "hello", "max_tokens": 4, "ignore_eos": True},
            headers={"traceparent": PARENT},
            timeout=PATIENCE_S,
        )
        assert reply.status_code == 200
        mine: dict[str, Span] = {}
        while (
            not {"POST /v1/completions", "paceline.request", "paceline.attempt", "paceline.engine"}
            <= mine.keys()
        ):
            _, span = taker.spans.get(timeout=PATIENCE_S)
            if span.trace_id.hex() == PARENT.split("-")[1]:
                mine[span.name] = span
    finally:
        stack.stop()
    chain = [
        mine[name]
        for name in ("POST /v1/completions", "paceline.request", "paceline.attempt", "paceline.engine")
    ]
    assert chain[0].parent_span_id.hex() == PARENT.split("-")[2]
    for parent, child in itertools.pairwise(chain):
        assert child.parent_span_id == parent.span_id
        assert child.start_time_unix_nano >= parent.start_time_unix_nano
