"""Bad input through the real line: a clear refusal that says what to change, and nothing else disturbed."""

from typing import Any

import grpc
import httpx
import pytest
from line_client import PATIENCE_S, generate, greedy
from stack_process import StackProcess

from paceline.common.v1.attempt_pb2 import SamplingParams
from paceline.common.v1.slo_pb2 import DeadlineSlo, LatencySlo, Slo
from paceline.router.v1.generation_pb2 import GenerationSpec
from paceline.router.v1.router_pb2 import (
    AttachRequest,
    CancelRequest,
    GenerateRequest,
    RouteSpec,
    RouteStreamRequest,
)
from paceline.router.v1.router_pb2_grpc import RouterServiceStub
from paceline_runtime.status import from_rpc_error

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("chat/completions", {**CHAT, "model": "nope"}, {}, 404, "tiny"),
        ("chat/completions", {**CHAT, "messages": []}, {}, 400, "messages"),
        ("completions", {"model": "tiny", "prompt": ""}, {}, 400, "prompt"),
        ("completions", {"model": "tiny", "prompt": "word " * 20_000}, {}, 400, "context"),
        ("chat/completions", {**CHAT, "temperature": -1}, {}, 400, "temperature"),
        ("chat/completions", {**CHAT, "n": 3}, {}, 400, "n"),
        ("chat/completions", CHAT, {"x-slo-ttft-ms": "-5"}, 400, "x-slo-ttft-ms"),
        ("chat/completions", CHAT, {"x-slo-class": "urgent"}, 400, "x-slo-class"),
        ("chat/completions", CHAT, {"x-slo-e2e-ms": "soon"}, 400, "x-slo-e2e-ms"),
        ("chat/completions", {**CHAT, "metadata": {"x-slo-class": "urgent"}}, {}, 400, "x-slo-class"),
    ],
)
def test_http(
    stack: StackProcess, path: str, body: dict[str, Any], headers: dict[str, str], status: int, says: str
) -> None:
    reply = httpx.post(f"http://{stack.gateway}/v1/{path}", json=body, headers=headers, timeout=PATIENCE_S)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert says in error["message"] or says == error["param"], error
    assert error["type"]


def test_http_body(stack: StackProcess) -> None:
    url = f"http://{stack.gateway}/v1/chat/completions"
    bad = httpx.post(
        url, content=b"{nonsense", headers={"content-type": "application/json"}, timeout=PATIENCE_S
    )
    assert bad.status_code == 400
    assert "JSON" in bad.json()["error"]["message"]
    big = httpx.post(url, content=b'{"model": "' + b"x" * 10_500_000 + b'"}', timeout=PATIENCE_S)
    assert big.status_code == 413
    assert big.json()["error"]["message"]


def test_http_duplicate_id(stack: StackProcess) -> None:
    url = f"http://{stack.gateway}/v1/chat/completions"
    headers = {"x-request-id": "the-same-one"}
    assert httpx.post(url, json=CHAT, headers=headers, timeout=PATIENCE_S).status_code == 200
    again = httpx.post(url, json=CHAT, headers=headers, timeout=PATIENCE_S)
    assert again.status_code == 409
    assert "the-same-one" in again.json()["error"]["message"]


@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        (greedy("", 4), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        (greedy("hi", 4, model="nope"), grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
        (greedy("word " * 20_000, 4), grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED"),
        (
            greedy("hi", 4, request_id="no spaces allowed"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        ),
        (
            GenerationSpec(text="hi", slo=Slo(latency=LatencySlo(ttft_ms=-1, tbt_ms=10))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_SLO",
        ),
        (
            GenerationSpec(text="hi", slo=Slo(deadline=DeadlineSlo(e2e_ms=float("nan")))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_SLO",
        ),
        (
            GenerationSpec(text="hi", sampling=SamplingParams(temperature=float("inf"))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        ),
    ],
)
async def test_grpc(stack: StackProcess, spec: GenerationSpec, code: grpc.StatusCode, reason: str) -> None:
    async with grpc.aio.insecure_channel(stack.router) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in RouterServiceStub(channel).Generate(
                GenerateRequest(spec=spec), timeout=PATIENCE_S
            ):
                pass
    assert caught.value.code() is code
    error = from_rpc_error(caught.value)
    assert error.reason == reason
    assert len(error.message) > 10


async def test_grpc_duplicate_id(stack: StackProcess) -> None:
    spec = greedy("hi", 4, request_id="grpc-twice")
    await generate(stack.router, spec)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(stack.router, spec)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_unknown_requests(stack: StackProcess) -> None:
    async with grpc.aio.insecure_channel(stack.router) as channel:
        stub = RouterServiceStub(channel)
        for call in (stub.Cancel(CancelRequest(request_id="never")),):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Attach(AttachRequest(request_id="never")):
                pass
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_bad_spec_in_a_stream_of_decisions_costs_itself_alone(stack: StackProcess) -> None:
    specs = [
        RouteSpec(request_id="no-prompt"),
        RouteSpec(request_id="no-model", prompt_tokens=10, model="nope"),
        RouteSpec(request_id="good", prompt_tokens=10),
    ]

    async def requests() -> Any:
        yield RouteStreamRequest(specs=specs)

    said = {}
    async with grpc.aio.insecure_channel(stack.router) as channel:
        async for response in RouterServiceStub(channel).RouteStream(requests(), timeout=PATIENCE_S):
            said |= {decision.request_id: decision for decision in response.decisions}
    assert [said[spec.request_id].failure.reason for spec in specs] == [
        "INVALID_ARGUMENT",
        "UNKNOWN_MODEL",
        "",
    ]
    assert "prompt_tokens" in said["no-prompt"].failure.message
    assert said["good"].engine_id
