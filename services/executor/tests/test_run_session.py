"""What one control stream leaves for the next."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from paceline.executor.v1 import executor_pb2
from paceline_executor.contract import AttemptSpec, StepReport
from paceline_executor.landing import Landing
from paceline_executor.run_session import RunSession
from paceline_executor.simulated.config import SimulatedConfig
from paceline_executor.simulated.driver import ManualDriver
from paceline_executor.simulated.engine import SimulatedEngine
from paceline_runtime.errors import PacelineError
from paceline_runtime.telemetry.spans import OpenSpans


async def no_pull(ticket: object) -> bytes:
    raise AssertionError("nothing is pulled here")


async def test_a_stream_that_is_taken_over_while_it_answers_leaves_the_events() -> None:
    engine = SimulatedEngine(SimulatedConfig(), ManualDriver())
    answered = asyncio.Event()

    async def write(response: executor_pb2.RunResponse) -> None:
        if not response.report.tickets:
            return
        # The answer is on its way when a newer stream takes over and its scheduler adds an attempt.
        session.fence()
        engine.events.drain()
        engine.add(AttemptSpec(7, "request-7", 5, prompt_text="hello"))
        answered.set()

    async def requests() -> AsyncIterator[executor_pb2.RunRequest]:
        yield executor_pb2.RunRequest(commands=executor_pb2.Commands(tickets=[1]))
        await asyncio.Event().wait()

    session = RunSession(
        engine,
        Landing(engine, no_pull, max_pulls=1),
        write,
        endpoint="",
        stall_pause_s=60.0,
        counters=Counter(),
        spans=OpenSpans("paceline.engine"),
    )
    async with asyncio.timeout(60):
        with pytest.raises(PacelineError, match="newer stream"):
            await session.serve([], requests())
        await answered.wait()
    left = engine.events.drain()
    assert [getattr(event, "attempt_key", 0) for event in left if not isinstance(event, StepReport)] == [7]
