"""Takes what an OpenTelemetry collector would, and keeps the spans of one trace."""

import queue
from concurrent import futures
from types import TracebackType
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class SpanCollector(TraceServiceServicer):
    """A collector on a port of its own."""

    def __init__(self) -> None:
        self.spans: queue.Queue[Span] = queue.Queue()
        self.trace_id = ""
        """Hexadecimal: spans of other traces are dropped."""
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0)

    def Export(
        self, request: trace.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    if span.trace_id.hex() == self.trace_id:
                        self.spans.put(span)
        return trace.ExportTraceServiceResponse()
