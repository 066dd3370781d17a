"""One emulated TensorRT-LLM engine and one real llama.cpp engine behind one router: either may die, streams complete.

The emulated one has the vocabulary of the real one's model, and not its weights: an answer that moves goes on as the
other engine would have it. Nothing here ran TensorRT-LLM.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from line_client import PATIENCE_S, Generation, generate_held, greedy

from paceline.common.v1.attempt_pb2 import FinishReason
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_executor.llamacpp.tiny import write_tiny_model
from paceline_router.app import RouterApp
from paceline_router.config import Config as RouterConfig
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

TOKENS = 60
HELD_AT = 30
"""Tokens that a stream may have before an engine dies: none can be at its end by then."""
SERVER: dict[str, Any] = {"listen": "127.0.0.1:0", "server": {"drain_grace_s": 0.05}}


@dataclass
class Fleet:
    router: RouterApp
    engines: dict[str, ExecutorApp]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    model = str(write_tiny_model(tmp_path / "tiny.gguf"))
    common = {**SERVER, "model": "tiny", "model_path": model, "context_tokens": 1024, "max_batch": 8}
    sections = {
        "real": {**common, "speed_factor": 5.0},
        "emulated": {
            **common,
            "backend": "trtllm",
            "trtllm": {"emulated": True, "frame_ms": 50.0, "time_scale": 1.0},
        },
    }
    async with AsyncExitStack() as apps:
        engines, schedulers = {}, []
        for name, section in sections.items():
            config = ExecutorConfig.model_validate({**section, "engine_id": name})
            engines[name] = await apps.enter_async_context(
                ExecutorApp(ExecutorServiceConfig(executor=config))
            )
            own = {
                **SERVER,
                "scheduler_id": name,
                "executor": engines[name].address,
                "engine_lost_after_s": 0.2,
            }
            schedulers.append(
                await apps.enter_async_context(SchedulerApp(SchedulerConfig.model_validate(own)))
            )
        routed = {
            **SERVER,
            "placement": "round-robin",
            "schedulers": [scheduler.address for scheduler in schedulers],
        }
        router = await apps.enter_async_context(
            RouterApp(RouterConfig.model_validate({"router": routed, "store": {"url": ""}}))
        )
        async with asyncio.timeout(PATIENCE_S):
            while sum(engine.up for engine in router.fleet) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield Fleet(router, engines)


def kill_real(app: ExecutorApp, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("killed by a test")

    patch.setattr(app.engine, "_run_step", fail)


def kill_emulated(app: ExecutorApp, patch: pytest.MonkeyPatch) -> None:
    with app.engine._changed:  # type: ignore[attr-defined]
        app.engine._frames.die("killed by a test")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("victim", "survivor", "kill"), [("real", "emulated", kill_real), ("emulated", "real", kill_emulated)]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_either_engine_may_die(
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    survivor: str,
    kill: Callable[[ExecutorApp, pytest.MonkeyPatch], None],
) -> None:
    seen = [Generation() for _ in range(6)]
    async with asyncio.TaskGroup() as group:
        for number, generation in enumerate(seen):
            prompt = f"Request {number}: tell a story about {number * 37}. " * 3
            group.create_task(
                generate_held(fleet.router.address, greedy(prompt, TOKENS), generation, HELD_AT)
            )
        for generation in seen:
            await generation.reached(5)
        hit = [g for g in seen if g.engine_id == victim and g.finished is None]
        kill(fleet.engines[victim], monkeypatch)
        for generation in seen:
            generation.let_go.set()
    assert {generation.engine_id for generation in seen} == {"real", "emulated"}, "both were used"
    assert hit
    for generation in seen:
        assert generation.finished is not None
        assert generation.finished.finish_reason == FinishReason.FINISH_REASON_LENGTH, generation.finished
        assert len(generation.ids) == TOKENS
    assert all(generation.finished.attempts == 2 for generation in hit if generation.finished)
    assert fleet.engines[survivor].engine.alive
    assert not fleet.engines[victim].engine.alive
