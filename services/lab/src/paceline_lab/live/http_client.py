"""Calls over the gateway's OpenAI API, streamed: what most clients do."""

import json
import time
from types import TracebackType
from typing import Any, Self

import httpx

from paceline_core.slo import Slo, SloClass
from paceline_lab.live.client import CallResult, CallSpec

_TIMEOUT = httpx.Timeout(connect=5.0, read=None, write=10.0, pool=None)


class HttpClient:
    """Calls a gateway at `host:port`, or anything that speaks the OpenAI API.

    A chunk does not say how many tokens it holds: a call whose chunks and tokens do not match in number gets its tokens
    spread over its chunks by length of text; first and last times are exact.
    """

    def __init__(self, gateway: str, *, model: str, connections: int = 512) -> None:
        self._model = model
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.AsyncClient(
            base_url=f"http://{gateway}", timeout=_TIMEOUT, limits=limits, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, spec: CallSpec, result: CallResult) -> None:
        """Make one call; see Client."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in spec.messages],
            "max_tokens": spec.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if spec.ignore_eos:
            body["ignore_eos"] = True
        headers = slo_headers(spec) | {"x-request-id": spec.request_id}
        chunks: list[tuple[float, int]] = []
        usage: dict[str, int] = {}
        try:
            async with self._client.stream(
                "POST", "/v1/chat/completions", json=body, headers=headers
            ) as reply:
                result.accepted_s = time.perf_counter()
                if reply.status_code != 200:
                    await reply.aread()
                    result.error = f"HTTP {reply.status_code}: {reply.text[:300]}"
                    return
                result.engine_id = reply.headers.get("x-paceline-engine", "")
                async for line in reply.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        _take(json.loads(line[6:]), time.perf_counter(), result, chunks, usage)
        except httpx.HTTPError as error:
            result.error = f"{type(error).__name__}: {error}"
            return
        result.prompt_tokens = usage.get("prompt_tokens", 0)
        result.token_s = spread(chunks, usage.get("completion_tokens", len(chunks)))
        if chunks:
            result.ended_s = chunks[-1][0]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _take(
    event: dict[str, Any],
    now_s: float,
    result: CallResult,
    chunks: list[tuple[float, int]],
    usage: dict[str, int],
) -> None:
    if "error" in event:
        result.error = str(event["error"].get("message", event["error"]))
        result.finish = "failed"
        return
    if event.get("usage"):
        usage.update({key: value for key, value in event["usage"].items() if isinstance(value, int)})
    for choice in event.get("choices", ()):
        text = choice.get("delta", {}).get("content") or ""
        if text:
            result.text.append(text)
            chunks.append((now_s, len(text)))
        if choice.get("finish_reason"):
            result.finish = choice["finish_reason"]
            result.ended_s = now_s


def spread(chunks: list[tuple[float, int]], tokens: int) -> list[float]:
    """When each of `tokens` arrived, from chunks of (time, length of text): one each, then the rest by length."""
    if not chunks or tokens <= 0:
        return []
    if tokens <= len(chunks):
        return [time_s for time_s, _ in chunks[: tokens - 1]] + [chunks[-1][0]]
    total = sum(length for _, length in chunks)
    extra, given, seen = tokens - len(chunks), 0, 0
    times: list[float] = []
    for time_s, length in chunks:
        seen += length
        share = extra * seen // total
        times += [time_s] * (1 + share - given)
        given = share
    return times


def slo_headers(spec: CallSpec) -> dict[str, str]:
    """An objective as request headers."""
    slo: Slo | None = spec.slo
    if slo is None:
        return {}
    if slo.slo_class is SloClass.LATENCY:
        return {
            "x-slo-class": "latency",
            "x-slo-ttft-ms": f"{slo.ttft_ms:g}",
            "x-slo-tbt-ms": f"{slo.tbt_ms:g}",
        }
    if slo.slo_class is SloClass.DEADLINE:
        return {"x-slo-class": "deadline", "x-slo-e2e-ms": f"{slo.e2e_ms:g}"}
    if slo.slo_class is SloClass.BEST_EFFORT:
        return {"x-slo-class": "best-effort"}
    headers = {
        "x-slo-class": "task",
        "x-slo-program-id": slo.task_id,
        "x-slo-program-deadline-ms": f"{slo.e2e_ms:g}",
        "x-slo-program-final": "true" if slo.task_final else "false",
    }
    if spec.stage:
        headers["x-slo-program-stage"] = spec.stage
    if spec.parents:
        headers["x-slo-program-parents"] = ",".join(spec.parents)
    return headers
