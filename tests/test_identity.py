"""Greedy output is the same token for token, in process or through the whole line, alone or many at once."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from line_client import Generation, generate, greedy
from stack_process import StackProcess

from paceline_executor.contract import AttemptEnded, AttemptSpec, Plan, Sampling, StepReport
from paceline_executor.llamacpp import LlamaCppConfig, LlamaCppEngine
from paceline_executor.llamacpp.model_fetch import fetch_model
from paceline_executor.llamacpp.tiny import write_tiny_model

PATIENCE_S = 200.0


def in_process(model: Path, prompts: list[str], tokens: int) -> list[list[int]]:
    """Each prompt alone on an engine of its own process, without any service."""
    engine = LlamaCppEngine(LlamaCppConfig(model))
    try:
        outputs: list[list[int]] = []
        for key, prompt in enumerate(prompts, start=1):
            sampling = Sampling(ignore_eos=True)
            engine.add(AttemptSpec(key, f"r{key}", tokens, prompt_text=prompt, sampling=sampling))
            engine.set_plan(Plan(key, (key,)))
            ids: list[int] = []
            ended = False
            while not ended:
                assert engine.events.wait(PATIENCE_S)
                for event in engine.events.drain():
                    if isinstance(event, StepReport):
                        ids += event.tokens.token_ids.tolist()
                    ended = ended or isinstance(event, AttemptEnded)
            outputs.append(ids)
    finally:
        engine.close()
    return outputs


async def through_the_line(router: str, prompts: list[str], tokens: int, at_once: int) -> list[list[int]]:
    gate = asyncio.Semaphore(at_once)

    async def one(prompt: str) -> Generation:
        async with gate:
            return await generate(router, greedy(prompt, tokens))

    return [generation.ids for generation in await asyncio.gather(*(one(prompt) for prompt in prompts))]


def varied(count: int) -> list[str]:
    rng = random.Random(7)
    return ["".join(rng.choices("abcdefg hijk lmno", k=rng.randrange(5, 400))) for _ in range(count)]


async def test_tiny_model(stack: StackProcess, tmp_path: Path) -> None:
    prompts = varied(32)
    alone = in_process(write_tiny_model(tmp_path / "tiny.gguf"), prompts, 48)
    assert await through_the_line(stack.router, prompts, 48, at_once=32) == alone
    assert await through_the_line(stack.router, prompts[:8], 48, at_once=1) == alone[:8]


@pytest.fixture(scope="module")
def real_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    process = StackProcess(tmp_path_factory.mktemp("real"), model="").start()
    yield process
    process.stop()


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_real_model(real_stack: StackProcess) -> None:
    prompts = [
        "A queue is a data structure that",
        "Once upon a time, in a small village by the sea, there lived a boy who " * 6,
        "def fibonacci(n):\n    ",
    ]
    alone = in_process(fetch_model(), prompts, 24)
    assert await through_the_line(real_stack.router, prompts, 24, at_once=3) == alone
