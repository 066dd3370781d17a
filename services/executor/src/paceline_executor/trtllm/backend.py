"""Drives an object that behaves like `tensorrt_llm.LLM`: the real one in its image, the emulator in tests."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from types import ModuleType
from typing import Any

from paceline_executor.contract import AttemptSpec, EngineError
from paceline_executor.frames.backend import (
    BackendFacts,
    BackendGone,
    IterationRow,
    LegEnd,
    LegFailed,
    LegItem,
    LegRefused,
    LegRequest,
)
from paceline_executor.trtllm.features import Features, detect
from paceline_executor.trtllm.lora import Adapter, lora_class
from paceline_executor.trtllm.stats import StatsReader

_log = logging.getLogger(__name__)
_ENDS = {
    "stop": LegEnd.STOP,
    "length": LegEnd.LENGTH,
    "cancelled": LegEnd.CANCELLED,
    "timeout": LegEnd.CANCELLED,
}
_KEEP_PRIORITY = 80
"""Retention of blocks of a request that is expected back; 35 is the engine's default, 100 the most."""


class TrtllmBackend:
    """Implements `frames.backend.Backend`."""

    def __init__(
        self, llm: Any, api: ModuleType, facts: BackendFacts, *, end_id: int, adapters: Sequence[Adapter] = ()
    ) -> None:
        self._llm = llm
        self._api = api
        self._end_id = end_id
        self._adapters: dict[str, Any] = {}
        self.counters: Counter[str] = Counter()
        """What happened so far, by name."""
        self.features: Features = detect(llm, api.SamplingParams)
        self.facts = facts
        self._stats = StatsReader(llm, self.counters)
        if adapters:
            if not self.features.lora:
                raise ValueError("this build takes no LoRA adapter per request")
            make = lora_class(api, "LoRARequest")
            self._adapters = {a.name: make(a.name, a.number, a.path) for a in adapters}

    def check(self, spec: AttemptSpec) -> None:
        """A logit bias would need a tensor of the whole vocabulary per request: refused."""
        if spec.sampling.logit_bias:
            raise EngineError("INVALID_SAMPLING", "this engine takes no logit_bias")

    def submit(self, request: LegRequest) -> "TrtllmLeg":
        """Hand a request in. What is wrong with it is raised here, at the call, not in its stream."""
        try:
            result = self._llm.generate_async(
                request.ids, self._sampling(request), streaming=True, **self._extras(request)
            )
        except (ValueError, TypeError, NotImplementedError) as error:
            # Only names that the signature has are passed, so a TypeError is about this request as well.
            raise LegRefused("ENGINE_REFUSED", str(error)) from error
        except RuntimeError as error:
            raise BackendGone(str(error)) from error
        return TrtllmLeg(result)

    async def rows(self) -> AsyncIterator[IterationRow]:
        """Iterations as they end."""
        async for row in self._stats.rows():
            yield row

    async def fault(self) -> str:
        """What the engine itself admits; it has been seen to admit nothing while nothing moved."""
        fatal = getattr(getattr(self._llm, "_executor", None), "_fatal_error", None)
        if fatal is not None:
            return f"fatal error: {fatal}"
        if self.features.health and not self._llm._check_health():
            return "the engine says that it is not healthy"
        return ""

    async def close(self) -> None:
        """Shut the engine down; takes seconds on a real one, so off the loop unless it lives on it."""
        self._stats.closed = True
        if getattr(self._llm, "lives_on_the_loop", False):
            self._llm.shutdown()
        else:
            await asyncio.to_thread(self._llm.shutdown)

    def _sampling(self, request: LegRequest) -> Any:
        wanted = request.sampling
        fields: dict[str, Any] = {
            "end_id": self._end_id,
            "pad_id": self._end_id,
            "max_tokens": request.max_tokens,
            "ignore_eos": wanted.ignore_eos,
            # Ids only: text and stop strings are the agent's.
            "detokenize": False,
        }
        if wanted.stop_token_ids:
            fields["stop_token_ids"] = list(wanted.stop_token_ids)
        if wanted.temperature > 0:
            fields |= {"temperature": wanted.temperature, "top_p": wanted.top_p, "seed": wanted.seed}
            if wanted.top_k:
                fields["top_k"] = wanted.top_k
        if wanted.repetition_penalty != 1.0:
            fields["repetition_penalty"] = wanted.repetition_penalty
        if wanted.presence_penalty or wanted.frequency_penalty:
            fields |= {
                "presence_penalty": wanted.presence_penalty,
                "frequency_penalty": wanted.frequency_penalty,
            }
            if self.features.prompt_ignore_length:
                fields["prompt_ignore_length"] = request.prompt_tokens
        return self._api.SamplingParams(**fields)

    def _extras(self, request: LegRequest) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        features, api = self.features, self._api
        if features.priority:
            extras["priority"] = request.priority
        if request.cache_salt:
            if features.cache_salt:
                extras["cache_salt"] = request.cache_salt
            else:
                raise LegRefused("UNSUPPORTED", "this build cannot keep caches apart by salt")
        if request.expected_back and features.retention:
            extras["kv_cache_retention_config"] = api.KvCacheRetentionConfig(
                [], decode_retention_priority=_KEEP_PRIORITY
            )
        if request.adapter:
            extras["lora_request"] = self._adapters[request.adapter]
        return extras


class TrtllmLeg:
    """Turns a result whose ids grow into new ids. Several tokens may come at once."""

    def __init__(self, result: Any) -> None:
        self._result = result
        # Not a generator around it: that would be one more frame for every token.
        self._advance = result.__anext__
        self._cursor = 0
        self._over = False

    @property
    def engine_id(self) -> int:
        """The id that the executor knows as `py_client_id`."""
        return int(self._result.request_id)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine did not compute, once it has said so."""
        return int(getattr(self._result, "cached_tokens", 0) or 0)

    def abort(self) -> None:
        """Enqueue a cancel."""
        self._result.abort()

    def __aiter__(self) -> "TrtllmLeg":
        return self

    async def __anext__(self) -> LegItem:
        if self._over:
            raise StopAsyncIteration
        try:
            await self._advance()
        except (RuntimeError, ValueError) as error:
            raise LegFailed(str(error)) from error
        output = self._result.outputs[0]
        # Never `token_ids_diff`; and the list may have got shorter by a stop token that was taken back.
        known = output.token_ids
        ids = known[self._cursor :]
        self._cursor = max(self._cursor, len(known))
        if output.finish_reason is None and not self._result.finished:
            return LegItem(ids)
        self._over = True
        reason = output.stop_reason
        return LegItem(
            ids,
            _ENDS.get(output.finish_reason or "", LegEnd.STOP),
            reason if isinstance(reason, int) else None,
        )
