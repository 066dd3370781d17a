"""One request is one trace through every process of the line, as a collector sees it."""

import itertools

import httpx
from line_client import PATIENCE_S
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from span_collector import SpanCollector
from stack_process import StackProcess

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHAIN = ("POST /v1/completions", "paceline.request", "paceline.attempt", "paceline.engine")


def test_a_request_is_one_trace(collector: SpanCollector, stack: StackProcess) -> None:
    collector.trace_id = PARENT.split("-")[1]
    reply = httpx.post(
        f"http://{stack.gateway}/v1/completions",
        json={"model": "tiny", "prompt": "hello", "max_tokens": 4, "ignore_eos": True},
        headers={"traceparent": PARENT},
        timeout=PATIENCE_S,
    )
    assert reply.status_code == 200
    mine: dict[str, Span] = {}
    while not mine.keys() >= set(CHAIN):
        span = collector.spans.get(timeout=PATIENCE_S)
        mine[span.name] = span
    chain = [mine[name] for name in CHAIN]
    assert chain[0].parent_span_id.hex() == PARENT.split("-")[2]
    for parent, child in itertools.pairwise(chain):
        assert child.parent_span_id == parent.span_id
        assert child.start_time_unix_nano >= parent.start_time_unix_nano
