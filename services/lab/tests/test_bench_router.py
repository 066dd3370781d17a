"""The benchmark of placement decisions, small."""

import os

import pytest

from paceline_lab.bench.router import RouterPlan, bench_router
from paceline_lab.bench.router_calls import CallsPlan, RouterBenchError, measure_calls
from paceline_lab.bench.router_host import announced_router
from paceline_router.config import Config


def test_it_times_every_policy_asked_for_and_puts_one_on_top():
    plan = RouterPlan(
        engines=4, decisions=20, fill=0.5, policies=("round-robin", "goodserve"), headline="margin"
    )
    result = bench_router(plan)
    assert set(result["policies"]) == {"round-robin", "goodserve", "margin"}
    assert result["decision_us_p50"] == result["policies"]["margin"]["decision_us_p50"] > 0
    assert all(row["decision_us_p99"] >= row["decision_us_p50"] for row in result["policies"].values())
    assert result["live_requests"] == 64


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="least-predicted"):
        bench_router(RouterPlan(engines=2, decisions=1, policies=("fastest",)))


SMALL = CallsPlan(
    stream_rate_per_s=400,
    unary_rate_per_s=20,
    seconds=0.5,
    warmup_s=0.1,
    message_specs=8,
    open_decisions=64,
    at_once=2,
)


def router_config(**fields):
    return Config.model_validate({"router": {"listen": "127.0.0.1:0", **fields}, "store": {"url": ""}})


async def test_a_router_over_announced_engines_is_measured():
    told = []
    async with announced_router(router_config(placement="margin"), engines=6, fill=0.5, seed=1) as app:
        figures = await measure_calls(SMALL, app.address, os.getpid(), told.append)
    for name in (
        "stream_decisions_per_s", "stream_ms_p50", "stream_ms_p99", "stream_most_per_s", "unary_ms_p50",
        "unary_ms_p99", "router_rss_mb",
    ):  # fmt: skip
        assert figures[name] > 0, name
    assert figures["stream_ms_p99"] >= figures["stream_ms_p50"]
    assert len(told) == 3


async def test_refused_decisions_void_the_run():
    async with announced_router(router_config(), engines=0, fill=0.5, seed=1) as app:
        with pytest.raises(RouterBenchError, match="no engine"):
            await measure_calls(SMALL, app.address, os.getpid(), print)
