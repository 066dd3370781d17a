"""What the TensorRT-LLM agent costs, on the emulator and in its time: emulated figures, not those of a GPU.

Time is virtual, so throughput, resume and abort are what the emulated engine would take; the agent's own cost is the
CPU time of an iteration with the agent less that of one without it, and that depends on this machine.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paceline_core.engines.roofline import step_times
from paceline_core.engines.shipped import load_profile
from paceline_executor.contract import AttemptEnded, AttemptSpec, Plan, Sampling, StepReport
from paceline_executor.frames.engine import FrameEngine
from paceline_executor.trtllm import emulator
from paceline_executor.trtllm.arguments import EngineSizes, llm_arguments
from paceline_executor.trtllm.build import build_emulated
from paceline_executor.trtllm.config import TrtllmSection
from paceline_executor.trtllm.emulator.virtual_time import run_virtually

_END_ID = 0


class TrtllmBenchError(RuntimeError):
    """The run is void."""


@dataclass(frozen=True)
class TrtllmPlan:
    """What is run."""

    profile: str = "a100-80-8b"
    mode: str = "frame"
    batch: int = 64
    requests: int = 192
    prompt_tokens: int = 256
    output_tokens: int = 256
    """Mean; requests differ by half of it to either side."""
    rounds: int = 3
    """Of the CPU measurement; the least counts, as everything else on the machine only adds."""
    resume_prompt_tokens: int = 1024


def bench_trtllm(plan: TrtllmPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures. Takes some seconds."""
    say("agent overhead: a full batch that decodes, with and without the agent")
    direct = min(run_virtually(_cpu(plan, _direct)) for _ in range(plan.rounds))
    agent = min(run_virtually(_cpu(plan, _agent)) for _ in range(plan.rounds))
    say("throughput: requests of unequal length through one batch")
    by_itself, through = run_virtually(_rate(plan, _direct)), run_virtually(_rate(plan, _agent))
    say("preempting, resuming, aborting")
    resume = run_virtually(_resume(plan))
    return {
        "emulated": True,
        "plan": asdict(plan),
        "agent_overhead_ms": agent - direct,
        "direct_iteration_cpu_ms": direct,
        "agent_iteration_cpu_ms": agent,
        "throughput_ratio": through / by_itself,
        "tokens_per_s_direct": by_itself,
        "tokens_per_s_agent": through,
        **resume,
    }


Drive = Callable[[TrtllmPlan, "list[int]"], Awaitable[int]]
"""Runs requests of these output lengths to their ends; returns the iterations that took."""


async def _cpu(plan: TrtllmPlan, drive: Drive) -> float:
    """CPU milliseconds of an iteration."""
    began_s = time.process_time()
    iterations = await drive(plan, [plan.output_tokens] * plan.batch)
    return (time.process_time() - began_s) * 1e3 / iterations


async def _rate(plan: TrtllmPlan, drive: Drive) -> float:
    """Tokens of a virtual second."""
    rng = np.random.default_rng(5)
    low, high = plan.output_tokens // 2, plan.output_tokens * 3 // 2
    lengths: list[int] = rng.integers(low, high + 1, plan.requests).tolist()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await drive(plan, lengths)
    return sum(lengths) / (loop.time() - began_s)


async def _direct(plan: TrtllmPlan, lengths: list[int]) -> int:
    """Everything handed to the engine at once, with a reader each: its own queue does the rest."""
    arguments = llm_arguments(_section(plan), emulator, _sizes(plan))
    if plan.mode == "plan":
        arguments["max_batch_size"] = plan.batch
    llm = emulator.FakeLLM(plan.profile, **arguments)
    rows = asyncio.create_task(_discard(llm))
    try:
        await asyncio.gather(*(_read(llm, plan, number, length) for number, length in enumerate(lengths)))
    finally:
        rows.cancel()
    return llm._executor.iter_counter


async def _read(llm: emulator.FakeLLM, plan: TrtllmPlan, number: int, length: int) -> None:
    sampling = emulator.SamplingParams(end_id=_END_ID, max_tokens=length, ignore_eos=True, detokenize=False)
    read = 0
    async for result in llm.generate_async(_prompt(number, plan.prompt_tokens), sampling, streaming=True):
        read = len(result.outputs[0].token_ids)
    if read != length:
        raise TrtllmBenchError(f"{read} tokens came instead of {length}")


async def _discard(llm: emulator.FakeLLM) -> None:
    while True:
        async for _ in llm.get_stats_async(timeout=2):
            pass


class _Reader:
    """Takes an agent's events as they come and knows when all attempts have ended."""

    def __init__(self, engine: FrameEngine, attempts: int) -> None:
        self.tokens = 0
        self.done = asyncio.Event()
        self.moved = asyncio.Event()
        self._left = attempts
        self._engine = engine
        engine.events.on_event(self._read)

    def _read(self) -> None:
        for event in self._engine.events.drain():
            if isinstance(event, StepReport):
                self.tokens += len(event.tokens.token_ids)
            elif isinstance(event, AttemptEnded):
                self._left -= 1
        self.moved.set()
        if self._left == 0:
            self.done.set()


async def _agent(plan: TrtllmPlan, lengths: list[int]) -> int:
    """The same requests through the agent, one plan that lists them all."""
    engine, llm = build_emulated(_section(plan), "bench", _sizes(plan))
    reader = _Reader(engine, len(lengths))
    for number, length in enumerate(lengths):
        engine.add(_spec(number, plan.prompt_tokens, length))
    engine.set_plan(Plan(1, tuple(range(1, len(lengths) + 1))))
    await reader.done.wait()
    if reader.tokens != sum(lengths):
        raise TrtllmBenchError(f"{reader.tokens} tokens came instead of {sum(lengths)}")
    await engine.aclose()
    return llm._executor.iter_counter


async def _resume(plan: TrtllmPlan) -> dict[str, Any]:
    """Take one request out and back again, many times, each at another place in its last block."""
    section = _section(plan)
    engine, llm = build_emulated(section, "bench", _sizes(plan))
    executor, loop = llm._executor, asyncio.get_running_loop()
    times = step_times(load_profile(plan.profile))
    prompt, turns = plan.resume_prompt_tokens, 24
    reader = _Reader(engine, 1)
    engine.add(_spec(0, prompt, 37 * (turns + 2)))
    ratios, aborts = [], []
    for turn in range(turns):
        engine.set_plan(Plan(turn + 1, (1,)))
        before, began_s = reader.tokens, loop.time()
        await _until(reader, before + 1)
        if turn:
            known = prompt + before
            size = section.tokens_per_block
            # All but the last token had its KV when the request left; of that, whole blocks are kept.
            kept = 0 if plan.mode == "plan" else (known - 1) // size * size
            partial = 1 if plan.mode == "plan" else known - kept
            expected_ms = times.step_ms(1, known + 1) + _extra_ms(times, partial, kept)
            ratios.append((loop.time() - began_s) * 1e3 / expected_ms)
        await _until(reader, before + 30 + turn % 7)
        iterations = executor.iter_counter
        engine.clear_plan()
        while engine.kv_use().resident and plan.mode == "frame":
            await _next(reader)
        aborts.append(executor.iter_counter - iterations)
        await asyncio.sleep(1.0)
    await engine.aclose()
    return {
        "resume_ratio": statistics.median(ratios),
        "resume_ratio_max": max(ratios),
        "abort_iterations": max(aborts),
        "resumes": engine.counters["resumes"],
    }


def _extra_ms(times: Any, tokens: int, before: int) -> float:
    """What the products and the attention of a partial block cost beside a decode step."""
    if tokens <= 1:
        return 0.0
    return float(times.token_ms * tokens + times.attention_ms * tokens * (before + tokens / 2))


async def _until(reader: _Reader, tokens: int) -> None:
    while reader.tokens < tokens:
        await _next(reader)


async def _next(reader: _Reader) -> None:
    reader.moved.clear()
    async with asyncio.timeout(600):
        await reader.moved.wait()


def _section(plan: TrtllmPlan) -> TrtllmSection:
    return TrtllmSection(emulated=True, profile=plan.profile, mode="plan" if plan.mode == "plan" else "frame")


def _sizes(plan: TrtllmPlan) -> EngineSizes:
    return EngineSizes(plan.batch, plan.batch, 8192)


def _prompt(number: int, tokens: int) -> list[int]:
    return [300 + (number * 131 + place * 7) % 9000 for place in range(tokens)]


def _spec(number: int, prompt_tokens: int, output_tokens: int) -> AttemptSpec:
    return AttemptSpec(
        number + 1,
        f"bench-{number}",
        output_tokens,
        prompt_ids=np.array(_prompt(number, prompt_tokens), np.int32),
        sampling=Sampling(ignore_eos=True),
    )
