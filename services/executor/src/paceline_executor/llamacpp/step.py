"""One engine step: prefill chunks in calls of their own within the budget, then one decode call for all the others.

Prefill comes first, so that a prompt that completes joins the decode of the same step and fills a free slot without a
move; its first token goes out in a report of its own before that decode.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline_executor.contract import PrefillCall
from paceline_executor.llamacpp.attempt import Attempt
from paceline_executor.llamacpp.context import Context
from paceline_executor.llamacpp.residency import Residency
from paceline_executor.llamacpp.sampling import SampleRow, sample


@dataclass
class PhaseResult:
    """What the prefill or the decode half of a step did."""

    started_s: float = field(default_factory=time.perf_counter)
    drawn: list[tuple[Attempt, int]] = field(default_factory=list)
    """New tokens, not yet appended to their attempts."""
    advanced: list[Attempt] = field(default_factory=list)
    """Attempts whose KV grew without a new token: prefill and replay."""
    prefill_calls: list[PrefillCall] = field(default_factory=list)
    decode_ms: float = 0.0
    decode_batch: int = 0
    decode_context_tokens: int = 0
    moved_tokens: int = 0

    @property
    def drawn_attempts(self) -> list[Attempt]:
        """Attempts that got a new token."""
        return [attempt for attempt, _ in self.drawn]


class Stepper:
    """Computes; knows nothing of plans, threads or reports."""

    def __init__(self, context: Context, residency: Residency) -> None:
        self._context = context
        self._residency = residency
        self._chunk_tokens = context.shape.chunk_tokens

    def prefill(
        self, run_set: Sequence[Attempt], budget_tokens: int, victim: Callable[[], Attempt]
    ) -> PhaseResult:
        """Prefill chunks in the order of the run set until the budget is used; one chunk at least if any is due."""
        result = PhaseResult()
        taken = 0
        decoding = [
            attempt.slot for attempt in run_set if attempt.slot is not None and not attempt.prefilling
        ]
        for attempt in run_set:
            if not attempt.prefilling:
                continue
            if attempt.slot is None:
                if taken and taken + min(self._chunk_tokens, attempt.prefill_target) > budget_tokens:
                    break
                joins_now = attempt.prefill_target <= budget_tokens - taken
                self._residency.admit(attempt, decoding, joins_now, victim)
                result.advanced.append(attempt)
            while attempt.prefilling and attempt.runnable(self._chunk_tokens):
                end = attempt.next_end(self._chunk_tokens)
                if taken and taken + end - attempt.kv_tokens > budget_tokens:
                    return result
                taken += end - attempt.kv_tokens
                self._prefill_chunk(attempt, end, result)
        return result

    def _prefill_chunk(self, attempt: Attempt, end: int, result: PhaseResult) -> None:
        assert attempt.slot is not None
        start = attempt.kv_tokens
        wants_logits = end == attempt.known_tokens
        began_s = time.perf_counter()
        logits = self._context.prefill(
            attempt.slot, attempt.ids_between(start, end), start, wants_logits=wants_logits
        )
        result.prefill_calls.append(PrefillCall(end - start, start, (time.perf_counter() - began_s) * 1e3))
        attempt.kv_tokens = end
        if wants_logits:
            token = sample(logits, [_row_of(attempt)])[0]
            result.drawn.append((attempt, token))
        elif not result.advanced or result.advanced[-1] is not attempt:
            result.advanced.append(attempt)

    def decode(self, run_set: Sequence[Attempt]) -> PhaseResult:
        """One token each, in one pass, for every attempt of the run set that is past its prefill."""
        result = PhaseResult()
        ready = [
            attempt
            for attempt in run_set
            if attempt.slot is not None and not attempt.prefilling and attempt.runnable(self._chunk_tokens)
        ]
        if not ready:
            return result
        if any(attempt.poisoned for attempt in ready):
            os.abort()
        result.moved_tokens = self._residency.arrange(ready)
        ready.sort(key=_slot_of)
        slots = np.array([attempt.slot for attempt in ready], np.int32)
        positions = np.array([attempt.kv_tokens for attempt in ready], np.int32)
        tokens = np.array([attempt.token_at(attempt.kv_tokens) for attempt in ready], np.int32)
        wants_logits = np.array(
            [attempt.kv_tokens + 1 == attempt.known_tokens for attempt in ready], np.bool_
        )
        began_s = time.perf_counter()
        logits = self._context.decode(slots, tokens, positions, wants_logits)
        result.decode_ms = (time.perf_counter() - began_s) * 1e3
        result.decode_batch = len(ready)
        result.decode_context_tokens = int(positions.sum()) + len(ready)
        making: list[Attempt] = []
        for attempt, makes in zip(ready, wants_logits.tolist(), strict=True):
            attempt.kv_tokens += 1
            (making if makes else result.advanced).append(attempt)
        if making:
            drawn = sample(logits, [_row_of(attempt) for attempt in making])
            result.drawn = list(zip(making, drawn, strict=True))
        return result


def _slot_of(attempt: Attempt) -> int:
    assert attempt.slot is not None
    return attempt.slot


def _row_of(attempt: Attempt) -> SampleRow:
    return SampleRow(attempt.spec.sampling, len(attempt.output_ids), attempt.prompt_ids, attempt.output_ids)
