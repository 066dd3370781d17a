"""`kill -9` of every part while requests stream: nothing lost, nothing doubled, greedy output unchanged.

Durability is `async`, the default. Engines run the tiny model. No request can end before the kill: the client's credit
is used up in the middle, and it gives more when the process is dead.
"""

import asyncio
from collections.abc import Iterator

import grpc
import httpx
import pytest
from line_client import PATIENCE_S, Generation, generate, generate_held, greedy
from stack_process import StackProcess

from paceline.common.v1.attempt_pb2 import FinishReason
from paceline.scheduler.v1.scheduler_pb2 import GetLoadRequest
from paceline.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

pytestmark = pytest.mark.timeout(600)  # only ends a test that hangs: on a busy machine processes begin slowly

TOKENS = 96
AT = 8
"""Tokens of every stream when a process dies."""
HELD_AT = 48
"""Tokens that a stream may have before that."""
SLOW = "executor.speed_factor=10"
GRACES_S = {
    "executor.orphan_ttl_s": 300,
    "scheduler.router_grace_s": 300,
    "router.scheduler_grace_s": 300,
    "router.detach_ttl_s": 300,
    "router.max_wait_ms": 300_000,
    "gateway.router_wait_s": 300,
    "gateway.router_outage_limit_s": 300,
    "gateway.adoption_grace_s": 300,
}
"""What waits for a process to be back waits for it on a slow machine too."""
PROMPTS = [f"Request {number}: tell a story about the number {number * 37}. " * 3 for number in range(6)]
POISON = "@@abort@@"


@pytest.fixture(scope="module")
def slow_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    graces = (f"{key}={value}" for key, value in GRACES_S.items())
    process = StackProcess(
        tmp_path_factory.mktemp("faults"), SLOW, *graces, f"executor.fault_abort_marker={POISON}"
    )
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


async def disturbed(stack: StackProcess, prompts: list[str], *roles: str) -> tuple[list[Generation], str]:
    """All prompts at once; in the middle of all streams `roles` die; of engines, that of the first stream.

    Returns what was seen, and the name of the last that died.
    """
    seen = [Generation() for _ in prompts]
    async with asyncio.TaskGroup() as group:
        for prompt, generation in zip(prompts, seen, strict=True):
            group.create_task(generate_held(stack.router, greedy(prompt, TOKENS), generation, HELD_AT))
        for generation in seen:
            await generation.reached(AT)
        assert all(generation.finished is None for generation in seen)
        names = [
            f"{role}-{seen[0].engine_id}" if role in ("executor", "scheduler") else role for role in roles
        ]
        pids = [stack.kill(name) for name in names]
        for generation in seen:
            generation.let_go.set()
    for name, pid in zip(names, pids, strict=True):
        await stack.restarted(name, pid)
    return seen, names[-1]


def check(seen: list[Generation], undisturbed: list[list[int]]) -> None:
    for generation, ids in zip(seen, undisturbed, strict=True):
        assert generation.finished is not None
        assert generation.finished.finish_reason == FinishReason.FINISH_REASON_LENGTH, generation.finished
        assert generation.ids == ids


async def test_executor_dies(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    seen, _ = await disturbed(slow_stack, PROMPTS, "executor")
    check(seen, undisturbed)
    attempts = [generation.finished.attempts for generation in seen if generation.finished]
    assert max(attempts) > 1, "nobody was on the engine that died"


async def test_scheduler_dies(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    seen, name = await disturbed(slow_stack, PROMPTS, "scheduler")
    check(seen, undisturbed)
    # Adopted: no request was replayed, and the new scheduler never saw a prefill.
    assert {generation.finished.attempts for generation in seen if generation.finished} == {1}
    async with grpc.aio.insecure_channel(slow_stack.service(name)["address"]) as channel:
        load = (await SchedulerServiceStub(channel).GetLoad(GetLoadRequest(), timeout=PATIENCE_S)).load
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
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        calm = (await client.post(url, json=body)).json()
        lines: list[str] = []
        pid = None
        async with client.stream("POST", url, json={**body, "stream": True}) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line.removeprefix("data: "))
                    if pid is None:
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
    seen, _ = await disturbed(slow_stack, PROMPTS, "gateway", "predictor")
    check(seen, undisturbed)
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        reply = await client.post(
            f"http://{slow_stack.gateway}/v1/completions",
            json={"model": "tiny", "prompt": "a", "max_tokens": 2},
        )
    assert reply.status_code == 200, reply.text


async def test_poisoned_request_fails_alone(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    prompts = PROMPTS[:4]
    seen = [Generation() for _ in prompts]
    async with asyncio.TaskGroup() as group:
        for prompt, generation in zip(prompts, seen, strict=True):
            group.create_task(generate(slow_stack.router, greedy(prompt, TOKENS), generation))
        for generation in seen:
            await generation.reached(4)
        poisoned = await generate(slow_stack.router, greedy(f"please {POISON} now", TOKENS))
    assert poisoned.finished is not None
    assert poisoned.finished.finish_reason == FinishReason.FINISH_REASON_FAILED
    assert poisoned.finished.failure.reason == "ENGINE_LOST"
    assert not poisoned.finished.failure.retryable
    check(seen, undisturbed[:4])


async def test_whole_fleet_dies(slow_stack: StackProcess, undisturbed: list[list[int]]) -> None:
    """Both engines at once: accepted work waits for the new incarnations."""
    seen, _ = await disturbed(slow_stack, PROMPTS[:2], "executor-cpu-0", "executor-cpu-1")
    check(seen, undisturbed[:2])
