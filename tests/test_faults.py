"""`kill -9` of every part while requests stream: nothing lost, nothing doubled, greedy output unchanged.

Durability is `async`, the default. Engines run the tiny model, slowed down so that a kill lands in the middle.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from line_client import Generation, generate, greedy
from stack_process import StackProcess

from paceline.common.v1.attempt_pb2 import FinishReason
from paceline.scheduler.v1.scheduler_pb2 import GetLoadRequest
from paceline.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

TOKENS = 96
SLOW = ("executor.speed_factor=20",)
PROMPTS = [f"Request {number}: tell a story about the number {number * 37}. " * 3 for number in range(8)]
POISON = "@@abort@@"


@pytest.fixture(scope="module")
def slow_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    process = StackProcess(tmp_path_factory.mktemp("faults"), *SLOW, f"executor.fault_abort_marker={POISON}")
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def undisturbed(slow_stack: StackProcess) -> list[list[int]]:
    """Ids of each prompt when nothing happens."""

    async def run() -> list[list[int]]:
        done = await asyncio.gather(*(generate(slow_stack.router, greedy(p, TOKENS)) for p in PROMPTS))
        return [generation.ids for generation in done]

    ids = asyncio.run(run())
    assert [len(row) for row in ids] == [TOKENS] * len(PROMPTS)
    assert len({tuple(row) for row in ids}) > len(PROMPTS) // 2, "prompts must lead to different answers"
    return ids


async def disturbed(
    stack: StackProcess, prompts: list[str], role: str, *, at: int = 8
) -> tuple[list[Generation], str]:
    """All prompts at once; when every stream has `at` tokens, `role` dies: of an engine, that of the first stream."""
    seen = [Generation() for _ in prompts]
    async with asyncio.TaskGroup() as group:
        for prompt, generation in zip(prompts, seen, strict=True):
            group.create_task(generate(stack.router, greedy(prompt, TOKENS), generation))
        for generation in seen:
            await generation.reached(at)
        assert all(generation.finished is None for generation in seen), "too fast to be disturbed"
        name = f"{role}-{seen[0].engine_id}" if role in ("executor", "scheduler") else role
        pid = stack.kill(name)
    await stack.restarted(name, pid)
    return seen, name


def check(seen: list[Generation], undisturbed: list[list[int]]) -> None:
    for generation, ids in zip(seen, undisturbed, strict=True):
        assert generation.finished is not None
        assert generation.finished.finish_reason == FinishReason.FINISH_REASON_LENGTH, generation.finished
        assert generation.ids == ids


async def test_executor_dies(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    seen, _ = await disturbed(slow_stack, PROMPTS, "executor")
    check(seen, undisturbed)
    attempts = [generation.finished.attempts for generation in seen if generation.finished]
    assert max(attempts) == 2, "nobody was on the engine that died"


async def test_scheduler_dies(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    seen, name = await disturbed(slow_stack, PROMPTS, "scheduler")
    check(seen, undisturbed)
    # Adopted: no request was replayed, and the new scheduler never saw a prefill.
    assert {generation.finished.attempts for generation in seen if generation.finished} == {1}
    async with grpc.aio.insecure_channel(slow_stack.service(name)["address"]) as channel:
        load = (await SchedulerServiceStub(channel).GetLoad(GetLoadRequest(), timeout=10)).load
    assert load.model.decode_samples > 0
    assert load.model.prefill_samples == 0


async def test_router_dies_grpc_clients_attach(
    slow_stack: StackProcess, undisturbed: list[list[int]]
) -> None:
    seen, _ = await disturbed(slow_stack, PROMPTS, "router")
    check(seen, undisturbed)
    assert all(generation.attaches >= 1 for generation in seen)
    assert {generation.finished.attempts for generation in seen if generation.finished} == {1}


async def test_router_dies_http_clients_notice_nothing(slow_stack: StackProcess) -> None:
    body = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    url = f"http://{slow_stack.gateway}/v1/completions"
    async with httpx.AsyncClient(timeout=90) as client:
        calm = (await client.post(url, json=body)).json()
        lines: list[str] = []
        pid = None
        async with client.stream("POST", url, json={**body, "stream": True}) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line.removeprefix("data: "))
                    if len(lines) == 5:
                        pid = slow_stack.kill("router")
    assert pid is not None
    assert lines[-1] == "[DONE]"
    chunks = [httpx.Response(200, text=line).json() for line in lines[:-1]]
    assert not [chunk for chunk in chunks if "error" in chunk]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text == calm["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    await slow_stack.restarted("router", pid)


async def test_gateway_and_predictor_die(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    seen, _ = await disturbed(slow_stack, PROMPTS, "predictor")
    check(seen, undisturbed)
    pid = slow_stack.kill("gateway")
    await slow_stack.restarted("gateway", pid)
    async with httpx.AsyncClient(timeout=30) as client:
        reply = await client.post(
            f"http://{slow_stack.gateway}/v1/completions",
            json={"model": "tiny", "prompt": "a", "max_tokens": 2},
        )
    assert reply.status_code == 200


async def test_poisoned_request_fails_alone(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    seen = [Generation() for _ in PROMPTS]
    async with asyncio.TaskGroup() as group:
        for prompt, generation in zip(PROMPTS, seen, strict=True):
            group.create_task(generate(slow_stack.router, greedy(prompt, TOKENS), generation))
        for generation in seen:
            await generation.reached(4)
        poisoned = await generate(slow_stack.router, greedy(f"please {POISON} now", TOKENS))
    assert poisoned.finished is not None
    assert poisoned.finished.finish_reason == FinishReason.FINISH_REASON_FAILED
    assert poisoned.finished.failure.reason == "ENGINE_LOST"
    assert not poisoned.finished.failure.retryable
    check(seen, undisturbed)


async def test_whole_fleet_dies(state_dir: Path) -> None:
    """Both engines at once: accepted work waits for the new incarnations."""
    stack = StackProcess(state_dir, *SLOW).start()
    try:
        calm = await generate(stack.router, greedy(PROMPTS[0], TOKENS))
        seen = Generation()
        async with asyncio.TaskGroup() as group:
            group.create_task(generate(stack.router, greedy(PROMPTS[0], TOKENS), seen))
            await seen.reached(8)
            for name in ("executor-cpu-0", "executor-cpu-1"):
                stack.kill(name)
        check([seen], [calm.ids])
    finally:
        stack.stop()
