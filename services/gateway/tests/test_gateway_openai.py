"""The official `openai` client, unchanged, against the gateway."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fake_router import FakeRouter, Script

from paceline.common.v1 import attempt_pb2
from paceline_gateway.app import GatewayApp

WORDS = [f"w{i} ".encode() for i in range(40)]
TEXT = b"".join(WORDS).decode()
MESSAGES: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture
async def ai(gateway: GatewayApp) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=90
    ) as client:
        yield client


async def test_chat(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    reply = await ai.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_completion_tokens=40,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        stop=["\n", "END"],
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"5": -100},
        user="somebody",
        n=1,
        extra_body={
            "top_k": 40,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "stop_token_ids": [2],
            "unknown": 1,
        },
    )
    assert reply.choices[0].message.content == TEXT
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 40, 47)
    assert reply.model == "tiny"
    spec = router.only().spec
    assert [(m.role, m.content) for m in spec.messages.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    assert not spec.streaming
    assert spec.max_tokens == 40
    sampling = spec.sampling
    assert sampling.temperature == pytest.approx(0.5)
    assert sampling.top_p == pytest.approx(0.9)
    assert sampling.seed == 2**64 - 1
    assert list(sampling.stop) == ["\n", "END"]
    assert dict(sampling.logit_bias) == {5: -100.0}
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, -0.5)
    assert (sampling.top_k, sampling.ignore_eos, list(sampling.stop_token_ids)) == (40, True, [2])
    assert sampling.repetition_penalty == pytest.approx(1.1)


async def test_defaults_are_those_of_openai(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    await ai.chat.completions.create(model="tiny", messages=MESSAGES)
    spec = router.only().spec
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.max_tokens) == (1, 1, 0)
    assert not spec.sampling.HasField("seed")
    assert not spec.HasField("slo")


async def test_chat_stream(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    stream = await ai.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert router.only().spec.streaming


async def test_stream_without_usage(ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(c.choices and c.usage is None for c in chunks)


async def test_completion(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    router.script = lambda spec: Script(list(WORDS), finish_reason=attempt_pb2.FINISH_REASON_LENGTH)
    reply = await ai.completions.create(model="tiny", prompt=[1, 2, 3], max_tokens=40)
    assert reply.choices[0].text == TEXT
    assert reply.choices[0].finish_reason == "length"
    assert router.only().spec.token_ids == b"\1\0\0\0\2\0\0\0\3\0\0\0"


async def test_completion_stream(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    stream = await ai.completions.create(
        model="tiny", prompt=["Once"], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == TEXT
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 47
    assert router.only().spec.text == "Once"


async def test_models(ai: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in await ai.models.list()] == ["tiny"]
    assert (await ai.models.retrieve("tiny")).owned_by == "paceline"
    with pytest.raises(openai.NotFoundError) as caught:
        await ai.models.retrieve("some/other")
    assert caught.value.code == "model_not_found"


async def test_utf8_split_across_tokens(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    text = 'héllo 🙂 漢字 \u0000 " \\ end'
    raw = text.encode()
    # One byte a token: worse than the contract allows, and with pieces of no text between them.
    router.script = lambda spec: Script([part for i in range(len(raw)) for part in (raw[i : i + 1], b"")])
    stream = await ai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == text
    reply = await ai.chat.completions.create(model="tiny", messages=MESSAGES)
    assert reply.choices[0].message.content == text


async def test_conversation_forms(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    ]
    await ai.chat.completions.create(model="tiny", messages=messages)
    sent = [(m.role, m.content, m.name) for m in router.only().spec.messages.messages]
    assert sent == [
        ("user", "ab", ""),
        ("assistant", '[{"name": "f", "arguments": "{}"}]', ""),
        ("tool", "4", "1"),
    ]


async def test_error_within_a_stream(ai: openai.AsyncOpenAI, router: FakeRouter) -> None:
    failure = attempt_pb2.Failure(reason="ENGINE_LOST", message="the engine died twice", retryable=False)
    router.script = lambda spec: Script(list(WORDS), failure=failure)
    stream = await ai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="died twice"):
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content or "")
    assert "".join(seen) == TEXT


@pytest.mark.parametrize(
    ("reason", "retry_ms", "status", "error", "code"),
    [
        ("UNKNOWN_MODEL", 0, 404, openai.NotFoundError, "model_not_found"),
        ("CONTEXT_LENGTH_EXCEEDED", 0, 400, openai.BadRequestError, "context_length_exceeded"),
        ("DUPLICATE_REQUEST", 0, 409, openai.ConflictError, "duplicate_request"),
        ("QUEUE_FULL", 2500, 429, openai.RateLimitError, "queue_full"),
        ("TENANT_QUOTA", 100, 429, openai.RateLimitError, "tenant_quota"),
        ("NO_ENGINE", 0, 503, openai.InternalServerError, "no_engine"),
        ("QUEUE_TTL_EXPIRED", 0, 504, openai.InternalServerError, "queue_ttl_expired"),
        ("INVALID_SLO", 0, 400, openai.BadRequestError, "invalid_slo"),
        ("A_NEW_REASON", 0, 500, openai.InternalServerError, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals(
    ai: openai.AsyncOpenAI,
    router: FakeRouter,
    reason: str,
    retry_ms: float,
    status: int,
    error: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    retryable = status in (429, 503, 504)
    refusal = attempt_pb2.Failure(
        reason=reason, message="no, because", retryable=retryable, retry_after_ms=retry_ms
    )
    router.script = lambda spec: Script(refusal=refusal)
    with pytest.raises(error) as caught:
        await ai.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.code == code
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"] == "no, because"
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    retry_after = caught.value.response.headers.get("retry-after")
    expected = {2500: "3", 100: "1", 0: "1" if status == 503 else None}[retry_ms]
    assert retry_after == expected


async def test_token_ids_are_returned_to_who_asks(ai: openai.AsyncOpenAI) -> None:
    asks: Any = {"model": "tiny", "prompt": "x", "extra_body": {"return_token_ids": True}}
    whole: Any = await ai.completions.create(**asks)
    assert whole.choices[0].token_ids == list(range(40))
    ids: list[int] = []
    texts = ""
    async for chunk in await ai.completions.create(**asks, stream=True):
        choice: Any = chunk.choices[0]
        texts += choice.text
        ids += getattr(choice, "token_ids", None) or []
    assert (ids, texts) == (list(range(40)), TEXT)
    chat: Any = []
    async for part in await ai.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, extra_body={"return_token_ids": True}
    ):
        chat += getattr(part.choices[0], "token_ids", None) or []
    assert chat == list(range(40))
    silent: Any = await ai.completions.create(model="tiny", prompt="x")
    assert not hasattr(silent.choices[0], "token_ids")
