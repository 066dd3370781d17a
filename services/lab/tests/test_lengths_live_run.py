"""A run against a real router, scheduler, predictor and simulated engine in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_lab.lengths.live.run import LiveLengthsError, LiveLengthsPlan, run_live_lengths
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config as PredictorConfig
from paceline_router.app import RouterApp
from paceline_router.config import Config as RouterConfig
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

SERVER = {"listen": "127.0.0.1:0", "server": {"drain_grace_s": 0.0}}


@pytest.fixture
async def stack() -> AsyncIterator[tuple[str, str]]:
    """Addresses of router and predictor."""
    simulated = {"time_scale": 0.02, "output_median_tokens": 60}
    engine = {**SERVER, "engine_id": "e", "backend": "simulated", "simulated": simulated}
    async with AsyncExitStack() as apps:
        sections = {"predictor": {"listen": "127.0.0.1:0"}, "store": {"url": ""}}
        predictor = await apps.enter_async_context(PredictorApp(PredictorConfig.model_validate(sections)))
        executor = await apps.enter_async_context(
            ExecutorApp(ExecutorServiceConfig(executor=ExecutorConfig.model_validate(engine)))
        )
        scheduler = await apps.enter_async_context(
            SchedulerApp(SchedulerConfig.model_validate({**SERVER, "executor": executor.address}))
        )
        own: dict[str, object] = {**SERVER, "schedulers": [scheduler.address], "predictor": predictor.address}
        own["predictor_timeout_ms"] = 5000.0  # a busy machine is no reason for a fallback
        router = await apps.enter_async_context(
            RouterApp(RouterConfig.model_validate({"router": own, "store": {"url": ""}}))
        )
        async with asyncio.timeout(60):
            while not any(e.up for e in router.fleet):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield router.address, predictor.address


async def test_every_request_is_scored_by_what_was_declared_for_it(stack: tuple[str, str]) -> None:
    seen: list[int] = []
    plan = LiveLengthsPlan(requests=30, warmup_requests=10, concurrency=4, max_tokens=4000)
    result = await run_live_lengths(plan, *stack, lambda done, _: seen.append(done))
    assert seen == list(range(1, 31))
    assert result["warmup"]["requests"] == 10
    scored = result["scored"]
    assert scored["requests"] == scored["open"] == 20
    assert 0.5 <= scored["coverage_p90"] <= 1.0
    assert scored["width"] > 1.0
    assert sum(group["requests"] for group in result["by_app"].values()) == 20
    assert "fallback" not in scored["sources"]
    # An answer that ends at once may overtake the predictor's: then the router's own estimate stands.
    assert scored["sources"].get("router", 0) < 10
    assert result["predictor"]


async def test_a_refused_request_ends_the_run(stack: tuple[str, str]) -> None:
    plan = LiveLengthsPlan(requests=5, concurrency=2, max_tokens=10**7)
    with pytest.raises(ExceptionGroup) as caught:
        await run_live_lengths(plan, *stack, lambda *_: None)
    assert caught.value.subgroup(LiveLengthsError) is not None
