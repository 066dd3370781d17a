"""Bad input: one clear error in OpenAI's shape that names what is wrong, and nothing reaches the router."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fake_router import FakeRouter, Script

from paceline_gateway.app import GatewayApp
from paceline_gateway.config import GatewayConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Hello"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router() -> AsyncIterator[FakeRouter]:
    """One for the whole module: most of these requests never reach it."""
    async with FakeRouter(lambda spec: Script([b"fine"])) as fake:
        yield fake


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(router: FakeRouter) -> AsyncIterator[httpx.AsyncClient]:
    config = GatewayConfig(listen="127.0.0.1:0", router=router.address)
    async with GatewayApp(config) as app, httpx.AsyncClient(base_url=app.url, timeout=90) as http:
        await app.session.wait_connected()
        yield http


def _image(kind: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind}]}]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (_image("image_url"), "messages[0].content[1].type"),
        (_image("input_audio"), "messages[0].content[1].type"),
        ({"model": 5}, "model"),
        ({"n": 2}, "n"),
        ({"n": "1"}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {}}, "guided_json"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"seed": 2**64}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"metadata": {"x-slo-class": "urgent"}}, "x-slo-class"),
        ({"metadata": {"x-slo-ttft-ms": ["5"]}}, "x-slo-ttft-ms"),
    ],
)
async def test_chat_fields(
    client: httpx.AsyncClient, router: FakeRouter, change: dict[str, Any], param: str
) -> None:
    await _refused(client, router, "/v1/chat/completions", CHAT | change, param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, -2]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"echo": True}, "echo"),
        ({"logprobs": 0}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_completion_fields(
    client: httpx.AsyncClient, router: FakeRouter, change: dict[str, Any], param: str
) -> None:
    await _refused(client, router, "/v1/completions", TEXT | change, param)


async def _refused(
    client: httpx.AsyncClient, router: FakeRouter, path: str, body: dict[str, Any], param: str
) -> None:
    submits = router.submits
    reply = await client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["message"]
    assert router.submits == submits


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-request-id": "no spaces"}, "x-request-id"),
        ({"x-request-id": "x" * 129}, "x-request-id"),
        ({"x-paceline-durability": "forever"}, "x-paceline-durability"),
        ({"x-paceline-priority": "101"}, "x-paceline-priority"),
        ({"x-paceline-priority": "high"}, "x-paceline-priority"),
        ({"x-paceline-app": "a" * 65}, "x-paceline-app"),
        ({"x-paceline-on-disconnect": "stay"}, "x-paceline-on-disconnect"),
        ({"x-paceline-max-wait-ms": "-1"}, "x-paceline-max-wait-ms"),
        ({"x-slo-ttft-ms": "-5"}, "x-slo-ttft-ms"),
    ],
)
async def test_headers(
    client: httpx.AsyncClient, router: FakeRouter, headers: dict[str, str], param: str
) -> None:
    submits = router.submits
    reply = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert router.submits == submits


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{nonsense",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role":"user","content":"\\ud800"}]}',
        b"[" * 9999,
    ],
)
async def test_not_json(client: httpx.AsyncClient, body: bytes) -> None:
    reply = await client.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_ten_megabytes(client: httpx.AsyncClient, router: FakeRouter, chunked: bool) -> None:
    body = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'

    async def parts() -> Any:
        for i in range(0, len(body), 1 << 20):
            yield body[i : i + (1 << 20)]

    submits = router.submits
    reply = await client.post("/v1/completions", content=parts() if chunked else body)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "body_too_large"
    assert router.submits == submits
    assert (await client.get("/healthz")).status_code == 200


async def test_large_body_below_the_limit(client: httpx.AsyncClient, router: FakeRouter) -> None:
    reply = await client.post(
        "/v1/completions", json={"prompt": "x" * 9_900_000}, headers={"x-request-id": "large"}
    )
    assert reply.status_code == 200
    assert len(router.requests["large"].spec.text) == 9_900_000


async def test_duplicate_id_of_a_live_and_of_an_ended_request(client: httpx.AsyncClient) -> None:
    for expected in (200, 409):
        reply = await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "the-same"})
        assert reply.status_code == expected
        assert reply.headers["x-request-id"] == "the-same"
    assert reply.json()["error"]["code"] == "duplicate_request"
    assert "the-same" in reply.json()["error"]["message"]


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v1/embeddings")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["type"] == "invalid_request_error"
