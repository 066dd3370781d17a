"""HTTP through the whole line, in one process: gateway, router, schedulers, executors with simulated engines."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_gateway.app import GatewayApp
from paceline_gateway.config import GatewayConfig
from paceline_router.app import RouterApp
from paceline_router.config import Config as RouterServiceConfig
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

PATIENCE_S = 100.0
ENDLESS = 5_000
"""Tokens of an answer that is still being written when something happens: half a minute."""
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "seed": 7, "ignore_eos": True}


class Line:
    """The running parts. The router can be taken away and brought back on its port."""

    def __init__(self, folder: Path) -> None:
        self._stack = AsyncExitStack()
        self._store_url = f"sqlite+aiosqlite:///{folder}/ledger.db"
        self._schedulers: list[str] = []
        self._router_address = "127.0.0.1:0"
        self.router: RouterApp
        self.gateway: GatewayApp

    async def start(self) -> None:
        for i in range(2):
            executor = await self._stack.enter_async_context(
                ExecutorApp(
                    ExecutorServiceConfig.model_validate(
                        {
                            "executor": ExecutorConfig.model_validate(
                                {
                                    "listen": "127.0.0.1:0",
                                    "engine_id": f"cpu-{i}",
                                    "backend": "simulated",
                                    "context_tokens": 2 * ENDLESS,
                                    "simulated": {"time_scale": 0.5},
                                }
                            )
                        }
                    )
                )
            )
            scheduler = await self._stack.enter_async_context(
                SchedulerApp(
                    SchedulerConfig(listen="127.0.0.1:0", scheduler_id=f"cpu-{i}", executor=executor.address)
                )
            )
            self._schedulers.append(scheduler.address)
        await self.start_router()
        async with asyncio.timeout(PATIENCE_S):
            while sum(engine.up for engine in self.router.fleet) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        self.gateway = await self._stack.enter_async_context(
            GatewayApp(
                GatewayConfig(
                    listen="127.0.0.1:0",
                    router=self.router.address,
                    drain_limit_s=0.2,
                    fleet_cache_ms=0,
                    router_wait_s=PATIENCE_S,
                    adoption_grace_s=PATIENCE_S,
                )
            )
        )
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=self.gateway.url) as http:
            while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def start_router(self) -> None:
        self.router = RouterApp(
            RouterServiceConfig.model_validate(
                {
                    "router": {
                        "listen": self._router_address,
                        "schedulers": self._schedulers,
                        "server": {"drain_grace_s": 0},
                        "detach_ttl_s": PATIENCE_S,
                        "scheduler_grace_s": PATIENCE_S,
                    },
                    "store": {"url": self._store_url},
                }
            )
        )
        await self.router.__aenter__()
        self._router_address = self.router.address

    async def stop_router(self) -> None:
        await self.router.__aexit__(None, None, None)

    async def stop(self) -> None:
        # The gateway first: it lets go of what its clients left behind.
        await self._stack.aclose()
        await self.stop_router()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    parts = Line(tmp_path)
    await parts.start()
    yield parts
    await parts.stop()


@pytest.fixture
async def ai(line: Line) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{line.gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield client


async def _chat(ai: openai.AsyncOpenAI, tokens: int, **headers: str) -> str:
    reply = await ai.chat.completions.create(
        model="simulated",
        messages=CHAT["messages"],
        max_tokens=tokens,
        seed=7,
        extra_body={"ignore_eos": True},
        extra_headers=headers,
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == tokens
    assert reply.usage.prompt_tokens > 0
    assert reply.choices[0].finish_reason == "length"
    return reply.choices[0].message.content or ""


async def test_openai_client(line: Line, ai: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in await ai.models.list()] == ["simulated"]
    whole = await _chat(ai, 50)
    stream = await ai.chat.completions.create(
        model="simulated",
        messages=CHAT["messages"],
        max_tokens=50,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 50
    texts = await asyncio.gather(*(_chat(ai, 50) for _ in range(30)))
    assert set(texts) == {whole}


async def test_refusals(line: Line) -> None:
    async with httpx.AsyncClient(base_url=line.gateway.url, timeout=PATIENCE_S) as http:

        async def ask(body: dict[str, Any], **headers: str) -> tuple[int, str, str | None]:
            reply = await http.post(
                "/v1/chat/completions", json=CHAT | {"max_tokens": 3} | body, headers=headers
            )
            error = reply.json().get("error", {})
            return reply.status_code, error.get("code"), error.get("param")

        assert await ask({"model": "nope"}) == (404, "model_not_found", "model")
        long = {"messages": [{"role": "user", "content": "word " * 40_000}]}
        assert await ask(long) == (400, "context_length_exceeded", "messages")
        assert (await ask(long | {"stream": True}))[0] == 400
        assert (await ask({}, **{"x-request-id": "twice"}))[0] == 200
        assert await ask({}, **{"x-request-id": "twice"}) == (409, "duplicate_request", "x-request-id")
        assert (await ask({"messages": [{"role": "user", "content": ""}]}))[0] == 400


async def test_a_target_out_of_reach_ends_with_what_was_attainable(line: Line) -> None:
    """Where the status can still tell, it does; after that the stream ends with the error."""
    body = CHAT | {"max_tokens": ENDLESS}
    async with httpx.AsyncClient(base_url=line.gateway.url, timeout=PATIENCE_S) as http:
        # Side by side, so that both engines work and their speed is known.
        warm = [http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 40}) for _ in range(6)]
        await asyncio.gather(*warm)
        whole = await http.post(
            "/v1/chat/completions", json=body, headers={"x-slo-e2e-ms": "300", "x-slo-on-miss": "drop"}
        )
        assert whole.status_code == 409
        assert whole.headers["x-should-retry"] == "false"  # clients of OpenAI's ask again at a 409
        for budget_ms in (300, 1200, 4800, 19_200):
            headers = {"x-slo-e2e-ms": str(budget_ms), "x-slo-on-miss": "drop"}
            streamed = await http.post("/v1/chat/completions", json=body | {"stream": True}, headers=headers)
            if streamed.status_code == 200:  # its first words were in time: on this machine
                break
        assert streamed.status_code == 200
        events = [json.loads(part[6:]) for part in streamed.text.split("\n\n") if part.startswith("data: {")]
        for error, due_ms in ((whole.json()["error"], 300), (events[-1]["error"], budget_ms)):
            assert (error["code"], error["type"]) == ("slo_unattainable", "invalid_request_error")
            assert error["attainable_ms"] > due_ms
            assert f"due {due_ms} ms after the arrival" in error["message"]
        assert sum("choices" in event for event in events) > 1
        kept = await http.post(
            "/v1/chat/completions",
            json=CHAT | {"max_tokens": 90},
            headers={"x-slo-e2e-ms": "1", "x-slo-on-miss": "finish"},
        )
        assert kept.json()["usage"]["completion_tokens"] == 90


async def test_headers_say_what_was_decided(line: Line) -> None:
    async with httpx.AsyncClient(base_url=line.gateway.url, timeout=PATIENCE_S) as http:
        declared = await http.post(
            "/v1/chat/completions", json=CHAT | {"max_tokens": 3}, headers={"x-slo-e2e-ms": "9000"}
        )
        assert declared.headers["x-slo-class"] == "deadline"
        assert declared.headers["x-slo-e2e-ms"] == "9000"
        assert declared.headers["x-paceline-engine"] in ("cpu-0", "cpu-1")
        assert declared.headers["x-paceline-estimate-source"] == "fallback"
        streamed = await http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 3, "stream": True})
        assert streamed.headers["x-slo-class"] == "latency"
        assert float(streamed.headers["x-slo-ttft-ms"]) > 0


async def test_leaving_client_ends_the_request_everywhere(line: Line) -> None:
    async with httpx.AsyncClient(base_url=line.gateway.url, timeout=PATIENCE_S) as http:
        body = CHAT | {"max_tokens": ENDLESS, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for text in reply.aiter_lines():
                if '"content":"' in text:
                    break
        async with asyncio.timeout(PATIENCE_S):
            await line.gateway.session.wait_empty()
            while (await http.get("/api/fleet")).json()["requests"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_router_restart_is_not_seen_by_clients(line: Line, ai: openai.AsyncOpenAI) -> None:
    whole = await _chat(ai, 300)
    started, restarted = asyncio.Semaphore(0), asyncio.Event()

    async def client() -> str:
        """Reads an answer that does not end, past the restart and past the length of `whole`."""
        stream = await ai.chat.completions.create(
            model="simulated",
            messages=CHAT["messages"],
            max_tokens=ENDLESS,
            seed=7,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text, needed = "", 0
        async with stream:
            async for chunk in stream:
                if not text:
                    started.release()
                text += chunk.choices[0].delta.content or ""
                if restarted.is_set():
                    needed = needed or max(len(text) + 1, len(whole))
                    if len(text) >= needed:
                        return text
        raise AssertionError("the stream ended")

    async def restart() -> None:
        for _ in range(6):
            await started.acquire()
        await line.stop_router()
        await line.start_router()
        restarted.set()

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(client()) for _ in range(6)]
        tasks.create_task(restart())
    texts = [task.result() for task in clients]
    longest = max(texts, key=len)
    assert longest.startswith(whole)
    assert all(longest.startswith(text) for text in texts)
    assert line.gateway.session.counters.connections == 2
    assert line.gateway.session.counters.reattaches > 0
    assert line.gateway.session.counters.gaps == 0
