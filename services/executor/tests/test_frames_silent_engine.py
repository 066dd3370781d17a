"""An engine that goes the whole length of a request and tells fewer tokens than that, as some servers do."""

import asyncio
from collections.abc import AsyncIterator

from paceline_executor.contract import AttemptEnded, AttemptSpec, EndReason, Plan, PrefixReuse, Sampling
from paceline_executor.frames.backend import BackendFacts, IterationRow, LegEnd, LegItem, LegRequest
from paceline_executor.frames.config import FrameConfig
from paceline_executor.frames.engine import FrameEngine
from paceline_executor.frames.spoken import SpokenVocabulary
from paceline_executor.simulated.language import language

NONE: tuple[IterationRow, ...] = ()


class FakeLeg:
    """Tells the tokens it was given, and that the length was reached."""

    engine_id = 0

    def __init__(self, told: list[int]) -> None:
        self._told = told

    async def __aiter__(self) -> AsyncIterator[LegItem]:
        yield LegItem(self._told, LegEnd.LENGTH)

    def abort(self) -> None:
        """Over before it could matter."""


class FakeReticentBackend:
    """Tells five tokens at first, then none."""

    facts = BackendFacts(
        "fake", "1", "none", "m", "none", 0, 0, PrefixReuse.NONE, priority=False, has_rows=False
    )

    def __init__(self) -> None:
        self.asked: list[int] = []

    def check(self, spec: AttemptSpec) -> None:
        """Everything is fine."""

    def submit(self, request: LegRequest) -> FakeLeg:
        self.asked.append(request.max_tokens)
        return FakeLeg([300 + n for n in range(5)] if len(self.asked) == 1 else [])

    async def rows(self) -> AsyncIterator[IterationRow]:
        for row in NONE:
            yield row

    async def fault(self) -> str:
        return ""

    async def close(self) -> None:
        """Nothing to close."""


async def test_an_answer_whose_rest_is_never_told_ends() -> None:
    backend = FakeReticentBackend()
    engine = FrameEngine(FrameConfig("m"), backend, SpokenVocabulary(language(0)))
    over = asyncio.Event()
    ends: list[AttemptEnded] = []

    def read() -> None:
        ends.extend(event for event in engine.events.drain() if isinstance(event, AttemptEnded))
        if ends:
            over.set()

    engine.events.on_event(read)
    engine.add(AttemptSpec(1, "r", 8, prompt_text="Hello there. ", sampling=Sampling(ignore_eos=True)))
    engine.set_plan(Plan(1, (1,)))
    async with asyncio.timeout(60):
        await over.wait()
    assert (ends[0].reason, ends[0].output_tokens) == (EndReason.LENGTH, 5)
    assert backend.asked == [8, 3, 3, 3]
    assert engine.counters["legs_without_tokens"] == 3
    assert (engine.kv_use().live, engine.kv_use().cached_tokens) == (0, 0)
    await engine.aclose()
