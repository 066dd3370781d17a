"""An agent on an emulated engine in virtual time, and everything it said."""

import asyncio
from collections.abc import Callable
from typing import Any

from paceline_executor.contract import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSpec,
    AttemptState,
    Plan,
    Sampling,
    StepReport,
    TokenColumns,
)
from paceline_executor.trtllm.arguments import EngineSizes
from paceline_executor.trtllm.build import build_emulated
from paceline_executor.trtllm.config import TrtllmSection
from paceline_executor.trtllm.emulator.parameters import Faults

_STEP_S = 0.001
_PATIENCE_S = 300.0


class Rig:
    """Adds, plans, and waits in virtual seconds, which cost nothing."""

    def __init__(
        self, mode: str = "frame", *, max_batch: int = 4, max_resident: int = 8, context_tokens: int = 1024,
        faults: Faults | None = None, **section: Any,
    ) -> None:  # fmt: skip
        settings = TrtllmSection(emulated=True, mode=mode, **section)  # type: ignore[arg-type]
        sizes = EngineSizes(max_batch, max_resident, context_tokens)
        self.engine, self.llm = build_emulated(settings, "emulated", sizes, faults)
        self.executor = self.llm._executor
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, AttemptEnded] = {}
        self.accepted: set[int] = set()
        self.steps: list[StepReport] = []
        self._plan_id = 0

    def add(self, key: int, prompt: str = "Once upon a time there was a fox. " * 4, *, max_tokens: int = 40,
            sampling: Sampling | None = None, **fields: Any) -> None:  # fmt: skip
        chosen = sampling or Sampling(ignore_eos=True)
        self.engine.add(
            AttemptSpec(key, f"request-{key}", max_tokens, prompt_text=prompt, sampling=chosen, **fields)
        )

    def plan(self, *keys: int, **fields: Any) -> None:
        self._plan_id += 1
        self.engine.set_plan(Plan(self._plan_id, keys, **fields))

    def state(self, key: int) -> AttemptState:
        return next(row.state for row in self.engine.live_table() if row.spec.attempt_key == key)

    def read(self) -> None:
        for event in self.engine.events.drain():
            match event:
                case AttemptAccepted():
                    self.accepted.add(event.attempt_key)
                case AttemptEnded():
                    assert event.attempt_key not in self.ended, "an end was said twice"
                    self.ended[event.attempt_key] = event
                case StepReport():
                    self.steps.append(event)
                    self._take(event.tokens)

    def _take(self, columns: TokenColumns) -> None:
        place = 0
        keys, firsts, counts = columns.attempt_keys, columns.first_indices, columns.counts
        for key, first, count in zip(keys.tolist(), firsts.tolist(), counts.tolist(), strict=True):
            known = self.tokens.setdefault(key, [])
            assert key not in self.ended, "a token came after the end"
            assert first == len(known), "tokens come in order, each once"
            known.extend(columns.token_ids[place : place + count].tolist())
            place += count

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait in virtual time."""
        deadline_s = asyncio.get_running_loop().time() + _PATIENCE_S
        self.read()
        while not done():
            assert asyncio.get_running_loop().time() < deadline_s, "not in time"
            await asyncio.sleep(_STEP_S)
            self.read()

    async def until_count(self, key: int, count: int) -> None:
        await self.until(lambda: len(self.tokens.get(key, [])) >= count)

    async def until_ended(self, *keys: int) -> None:
        await self.until(lambda: set(keys) <= self.ended.keys())

    def assert_nothing_left(self) -> None:
        """Neither in the engine nor in the agent."""
        assert self.executor.active_requests == []
        assert len(self.executor.waiting) == 0
        assert not self.executor._canceled
        assert self.executor.pool.used == 0
        assert self.engine._frames.legs == {}
        use = self.engine.kv_use()
        assert (use.used_tokens, use.resident, use.live) == (0, 0, 0)
        assert not [name for name in self.engine._frames.tasks.names() if name.startswith("leg-")]
