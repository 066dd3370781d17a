"""What has to be seen on a GPU before anything is claimed of one: checks that run on a live LLM object.

The same checks run on the emulator, which shows that they work, and nothing about TensorRT-LLM.
"""

import asyncio
import itertools
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any

from paceline_executor.trtllm.features import detect
from paceline_executor.trtllm.surface import surface

_ANSWER_TOKENS = 96
_CUT_AT = 41
_PATIENCE_S = 120.0


class Outcome(StrEnum):
    """How a check went."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class LiveCheck:
    """One check and what was measured."""

    name: str
    outcome: Outcome
    measured: str


class LiveChecks:
    """Runs them one after the other on an engine that nobody else uses."""

    def __init__(
        self, llm: Any, api: ModuleType, prompt_ids: list[int], *, end_id: int, tokens_per_block: int
    ) -> None:
        self._llm = llm
        self._api = api
        self._prompt_ids = prompt_ids
        self._end_id = end_id
        self._tokens_per_block = tokens_per_block

    async def run(self) -> list[LiveCheck]:
        """All of them; a check that raises has failed."""
        checks = [self._features()]
        for check in (self._resume, self._abort, self._stats):
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    checks += await check()
            except (TimeoutError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                name = check.__name__.strip("_")
                checks.append(LiveCheck(name, Outcome.FAIL, f"{type(error).__name__}: {error}"))
        return checks

    def _features(self) -> LiveCheck:
        missing = detect(self._llm, self._api.SamplingParams).missing()
        found = f"lacks {', '.join(missing)}" if missing else "all that is used"
        return LiveCheck("features by signature", Outcome.PASS, found)

    async def _resume(self) -> list[LiveCheck]:
        whole = await self._finish(self._submit(self._prompt_ids, _ANSWER_TOKENS))
        cut = self._submit(self._prompt_ids, _ANSWER_TOKENS)
        kept: list[int] = []
        async for result in cut:
            kept = list(result.outputs[0].token_ids)
            if len(kept) >= _CUT_AT and not cut.aborted():
                cut.abort()
        again = self._submit(self._prompt_ids + kept, _ANSWER_TOKENS - len(kept))
        rest = await self._finish(again)
        equal = kept + rest == whole
        known = len(self._prompt_ids) + len(kept)
        expected = (known - 1) // self._tokens_per_block * self._tokens_per_block
        cached = int(getattr(again, "cached_tokens", 0) or 0)
        hit = Outcome.PASS if cached >= expected - self._tokens_per_block else Outcome.FAIL
        return [
            LiveCheck(
                "greedy answer, interrupted and resumed, equals the uninterrupted one",
                Outcome.PASS if equal else Outcome.FAIL,
                f"{len(kept)} + {len(rest)} tokens of {len(whole)}",
            ),
            LiveCheck("a resume finds its blocks", hit, f"{cached} of {expected} tokens cached"),
        ]

    async def _abort(self) -> list[LiveCheck]:
        loop = asyncio.get_running_loop()
        result = self._submit(self._prompt_ids, 512)
        asked_s, tokens_then, gaps = 0.0, 0, [loop.time()]
        async for item in result:
            gaps.append(loop.time())
            tokens = len(item.outputs[0].token_ids)
            if not asked_s and tokens >= 20:
                asked_s, tokens_then = loop.time(), tokens
                result.abort()
        ended_s = loop.time()
        overshoot = len(result.outputs[0].token_ids) - tokens_then
        steps = sorted(after - before for before, after in itertools.pairwise(gaps[1:]))
        step_s = steps[len(steps) // 2] if steps else 0.0
        return [
            LiveCheck(
                "an abort ends within two iterations",
                Outcome.PASS if overshoot <= 2 else Outcome.FAIL,
                f"{(ended_s - asked_s) * 1e3:.1f} ms, {overshoot} tokens more, an item every {step_s * 1e3:.1f} ms",
            )
        ]

    async def _stats(self) -> list[LiveCheck]:
        await self._finish(self._submit(self._prompt_ids, 8))
        wanted = surface().stats
        async for row in self._llm.get_stats_async(timeout=2):
            nested, kv = row.get("inflightBatchingStats") or {}, row.get("kvCacheStats") or {}
            missing = [name for name in wanted.required if name not in row]
            missing += [name for name in wanted.kv if name not in kv]
            missing += [name for name in wanted.inflight if name not in nested]
            return [
                LiveCheck(
                    "iteration statistics have the fields",
                    Outcome.FAIL if missing else Outcome.PASS,
                    f"missing: {', '.join(missing)}" if missing else f"{len(row)} fields",
                )
            ]
        return [LiveCheck("iteration statistics have the fields", Outcome.FAIL, "no row came in 2 s")]

    def _submit(self, ids: list[int], tokens: int) -> Any:
        sampling = self._api.SamplingParams(
            end_id=self._end_id, pad_id=self._end_id, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        return self._llm.generate_async(ids, sampling, streaming=True)

    async def _finish(self, result: Any) -> list[int]:
        async for _ in result:
            pass
        return list(result.outputs[0].token_ids)
