"""Measures a stack before a run: idle times, one call at a time; capacity, with a full house."""

import asyncio
import time
import uuid
from collections.abc import Callable

import numpy as np

from paceline_core.slo import Slo, SloClass
from paceline_lab.live.client import CallResult, CallSpec, Client
from paceline_lab.live.driver import Driver
from paceline_lab.live.objectives import IdleTimes, Objectives
from paceline_lab.live.workload import Job
from paceline_lab.prompts.model import Library, Message

_IDLE_OUTPUT_TOKENS = 24
_IDLE_CALLS = 8
_CALL_LIMIT_S = 60.0

_BEST_EFFORT = Slo(SloClass.BEST_EFFORT)


class CalibrationError(RuntimeError):
    """The stack did not answer the calibration calls."""


async def measure_idle(client: Client, library: Library, say: Callable[[str], None]) -> IdleTimes:
    """Calls of growing prompts, one after the other. The stack should have nothing else to do."""
    ordered = sorted(library.prompts, key=lambda prompt: len(prompt.text))
    places = np.linspace(0, len(ordered) - 1, _IDLE_CALLS).round().astype(int)
    chars, tokens, ttft_ms, tbt_ms = [], [], [], []
    for number, place in enumerate([int(places[0]), *map(int, places)]):
        prompt = ordered[place]
        # Words of our own in front, so that no prefix cache knows the prompt.
        messages = [Message("user", f"Note {uuid.uuid4().hex[:8]}. {prompt.text}")]
        request_id = f"calibrate-{uuid.uuid4().hex[:12]}"
        result = CallResult()
        spec = CallSpec(request_id, messages, _IDLE_OUTPUT_TOKENS, _BEST_EFFORT, "calibrate", ignore_eos=True)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(_CALL_LIMIT_S):
                await client.call(spec, result)
        except TimeoutError:
            raise CalibrationError(f"no answer to a single call in {_CALL_LIMIT_S:.0f} s") from None
        if result.error or len(result.token_s) < 2:
            raise CalibrationError(f"a single call failed: {result.error or 'it had fewer than two tokens'}")
        if number == 0:
            continue  # the first call warms up what is made on first use
        chars.append(len(messages[0].content))
        tokens.append(result.prompt_tokens)
        ttft_ms.append((result.token_s[0] - began) * 1000)
        tbt_ms.append((result.token_s[-1] - result.token_s[0]) * 1000 / (len(result.token_s) - 1))
        say(f"idle: {result.prompt_tokens} prompt tokens, TTFT {ttft_ms[-1]:.0f} ms, TBT {tbt_ms[-1]:.1f} ms")
    per_token, base = np.polyfit(np.array(tokens), np.array(ttft_ms), 1)
    return IdleTimes(
        ttft_base_ms=max(0.0, float(base)),
        ttft_per_token_ms=max(0.0, float(per_token)),
        tbt_ms=float(np.median(tbt_ms)),
        tokens_per_char=float(np.sum(tokens) / np.sum(chars)),
    )


async def measure_capacity(
    client: Client,
    jobs: list[Job],
    objectives: Objectives,
    say: Callable[[str], None],
    *,
    concurrency: int = 24,
    warmup_s: float = 6.0,
    measure_s: float = 20.0,
) -> float:
    """Jobs per second that end with `concurrency` of them at work all the time. Rough: some dozens are counted."""
    driver = Driver(client, objectives, run_id=f"cap-{uuid.uuid4().hex[:8]}")
    ended_s: list[float] = []
    left = iter(jobs)
    began = time.perf_counter()

    async def worker() -> None:
        for job in left:
            record = await driver.run_job(job, began=time.perf_counter() - job.arrival_s)
            if record.completed:
                ended_s.append(time.perf_counter() - began)

    workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
    try:
        await asyncio.wait(workers, timeout=warmup_s + measure_s, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.wait(workers)
    failure = next((e for task in workers if not task.cancelled() and (e := task.exception())), None)
    if failure is not None:
        raise failure
    counted = sum(warmup_s <= moment <= warmup_s + measure_s for moment in ended_s)
    if counted == 0:
        raise CalibrationError(
            f"no job ended in {measure_s:.0f} s with {concurrency} at work: give --rate yourself"
        )
    say(f"capacity: {counted} jobs ended in {measure_s:.0f} s with {concurrency} at work")
    return counted / measure_s
