"""Measures a stack before a run: idle times, one call at a time; capacity, with full engines."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline_core.slo import Slo, SloClass
from paceline_lab.live.client import CallResult, CallSpec, Client
from paceline_lab.live.objectives import IdleTimes
from paceline_lab.prompts.model import Library, Message, TaskPrompt

_IDLE_OUTPUT_TOKENS = 24
_IDLE_CALLS = 8
_CALL_LIMIT_S = 120.0
_BURST_PER_ENGINE = 12
_BURST_OUTPUT_TOKENS = 48

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


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a fleet can serve of a mix. `decode_tokens_per_s`: measured with every engine full."""

    jobs_per_s: float
    decode_tokens_per_s: float
    prompt_tokens_per_job: float
    output_tokens_per_job: float


async def measure_capacity(
    client: Client,
    library: Library,
    mix: Sequence[tuple[SloClass, float]],
    idle: IdleTimes,
    engines: int,
    say: Callable[[str], None],
) -> Capacity:
    """Jobs per second at which prefill and decode of the mix take all the engines' time.

    A job costs its prompt tokens at the idle prefill rate of one engine, and its output tokens at the decode rate of
    full engines, which is measured here with a burst of short prompts. Answers are taken at their limit. Rough on
    purpose: it sets a load, it is no result.
    """
    decode_rate = await _decode_rate(client, _BURST_PER_ENGINE * engines)
    prompt_tokens, output_tokens = mean_job_tokens(library, mix, idle.tokens_per_char)
    cost_s = prompt_tokens * idle.ttft_per_token_ms / 1000 + output_tokens * engines / decode_rate
    capacity = Capacity(engines / cost_s, decode_rate, prompt_tokens, output_tokens)
    say(
        f"capacity: {capacity.jobs_per_s:.2f} jobs/s of {prompt_tokens:.0f} prompt and {output_tokens:.0f} output "
        f"tokens; {decode_rate:.0f} tokens/s with all engines full"
    )
    return capacity


def mean_job_tokens(
    library: Library, mix: Sequence[tuple[SloClass, float]], tokens_per_char: float
) -> tuple[float, float]:
    """Mean prompt and output tokens of a job of the mix, with answers at their limits, also inside later prompts."""

    def of_class(slo_class: SloClass) -> tuple[float, float]:
        if slo_class is SloClass.TASK:
            prompts = [_task_prompt_tokens(task, tokens_per_char) for task in library.tasks]
            outputs = [sum(call.max_tokens for call in task.calls) for task in library.tasks]
        else:
            chosen = library.prompts if slo_class is SloClass.BEST_EFFORT else library.of_class(slo_class)
            prompts = [len(prompt.text) * tokens_per_char for prompt in chosen]
            outputs = [prompt.max_tokens for prompt in chosen]
        return float(np.mean(prompts)), float(np.mean(outputs))

    total = sum(weight for _, weight in mix)
    means = [(weight / total, *of_class(slo_class)) for slo_class, weight in mix]
    return sum(w * prompt for w, prompt, _ in means), sum(w * output for w, _, output in means)


def _task_prompt_tokens(task: TaskPrompt, tokens_per_char: float) -> float:
    limits = {call.name: call.max_tokens for call in task.calls}
    return sum(
        len(call.template) * tokens_per_char + sum(limits[name] for name in call.references)
        for call in task.calls
    )


async def _decode_rate(client: Client, calls: int) -> float:
    """Output tokens per second of all engines while `calls` short requests decode side by side."""
    results = [CallResult() for _ in range(calls)]
    tag = uuid.uuid4().hex[:8]
    try:
        async with asyncio.timeout(_CALL_LIMIT_S), asyncio.TaskGroup() as group:
            for number, result in enumerate(results):
                messages = [Message("user", f"Note {tag}-{number}. Tell me a story.")]
                spec = CallSpec(
                    f"capacity-{tag}-{number}",
                    messages,
                    _BURST_OUTPUT_TOKENS,
                    _BEST_EFFORT,
                    "calibrate",
                    ignore_eos=True,
                )
                group.create_task(client.call(spec, result))
    except TimeoutError:
        raise CalibrationError(
            f"{calls} short calls did not end in {_CALL_LIMIT_S:.0f} s: give --rate yourself"
        ) from None
    failed = next((result.error for result in results if result.error), "")
    if failed:
        raise CalibrationError(f"a call of the capacity measurement failed: {failed}")
    return decode_rate_of([result.token_s for result in results])


def decode_rate_of(token_s: Sequence[Sequence[float]]) -> float:
    """Tokens per second between the last call's first token and the first end of a call.

    Without such a time (not all ran side by side), tokens over the whole time.
    """
    began, ended = max(times[0] for times in token_s), min(times[-1] for times in token_s)
    if ended <= began:
        began, ended = min(times[0] for times in token_s), max(times[-1] for times in token_s)
    count = sum(began < moment <= ended for times in token_s for moment in times)
    if ended <= began or count == 0:
        raise CalibrationError("all answers came at once: nothing to measure a rate by; give --rate yourself")
    return count / (ended - began)
