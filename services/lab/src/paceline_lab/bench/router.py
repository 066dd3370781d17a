"""What a routing decision costs: the decision core alone, without a service around it.

A fleet of simulated engines of four kinds is filled with live requests to a share of its slots, and stays that full:
each decision ends an older request. Timed is what a decision takes in the router: the view of the fleet, and the
policy's answer. What follows a placement (ledger, residents), load reports and repricing are timed apart.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from paceline_core import lengths
from paceline_core.engines.shipped import load_profile
from paceline_core.headroom import HORIZONS_MS
from paceline_core.placement.demand import DemandWindow
from paceline_core.placement.fleet_table import EngineLimits, FleetTable
from paceline_core.placement.prices import reprice
from paceline_core.placement.registry import POLICIES, make_policy
from paceline_core.placement.view import RequestView
from paceline_core.slo import Slo, SloClass

_KINDS: Final = ("h100-8b", "a100-80-8b", "v100-32-8b", "a40-8b")
_BATCH: Final = 32
_WARM: Final = 200
_REPRICE_EVERY: Final = 500
_STEP_MS: Final = 1.0
"""Between two decisions, on the fleet's clock: 1,000 a second."""


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """What is measured."""

    engines: int = 512
    decisions: int = 2000
    fill: float = 0.7
    """Share of the slots that are taken."""
    seed: int = 1
    policies: tuple[str, ...] = ()
    """Empty: all of them."""
    headline: str = "margin"
    """The policy whose figures stand on top."""


def bench_router(plan: RouterPlan) -> dict[str, Any]:
    """All figures, microseconds unless they say otherwise. Raises ValueError on an unknown policy."""
    names = plan.policies or tuple(POLICIES)
    policies = {name: _measure(plan, name) for name in dict.fromkeys((*names, plan.headline))}
    headline = policies[plan.headline]
    return {
        "engines": plan.engines,
        "live_requests": int(plan.engines * _BATCH * plan.fill),
        "decisions": plan.decisions,
        "seed": plan.seed,
        "policy": plan.headline,
        "decision_us_p50": headline["decision_us_p50"],
        "decision_us_p99": headline["decision_us_p99"],
        "policies": policies,
    }


def _measure(plan: RouterPlan, name: str) -> dict[str, float]:
    rng = np.random.default_rng(plan.seed)
    policy = make_policy(name)
    table, demand = _fleet(plan.engines, rng), DemandWindow()
    requests = _requests(rng, 256)
    live: deque[tuple[int, int]] = deque()
    now_ms, key = 0.0, 0
    for _ in range(int(plan.engines * _BATCH * plan.fill)):
        key += 1
        row = int(rng.integers(plan.engines))
        table.placed(row, key, requests[key % len(requests)], now_ms)
        live.append((key, row))
    for row in range(plan.engines):
        _report(table, rng, row, now_ms, plan.fill)
    decided, placed, reported, priced = [], [], [], []
    for k in range(_WARM + plan.decisions):
        now_ms += _STEP_MS
        key += 1
        request = requests[int(rng.integers(len(requests)))]
        demand.add(request, now_ms)
        if k % _REPRICE_EVERY == 0:
            began = time.perf_counter()
            table.prices = reprice(table.prices, table.view(now_ms), demand.demand(now_ms))
            priced.append(time.perf_counter() - began)
        began = time.perf_counter()
        choice = policy.place(_fresh(request), table.view(now_ms), now_ms)
        decided.append(time.perf_counter() - began)
        began = time.perf_counter()
        table.placed(choice.engine, key, request, now_ms)
        table.ended(live.popleft()[0], now_ms, 100)
        placed.append(time.perf_counter() - began)
        live.append((key, choice.engine))
        began = time.perf_counter()
        _report(table, rng, k % plan.engines, now_ms, plan.fill)
        reported.append(time.perf_counter() - began)
    return {
        **_percentiles("decision_us", decided[_WARM:], 1e6),
        **_percentiles("placed_us", placed[_WARM:], 1e6),
        **_percentiles("report_us", reported[_WARM:], 1e6),
        **_percentiles("reprice_ms", priced, 1e3),
    }


def _fresh(request: RequestView) -> RequestView:
    """The same request with nothing remembered: what a decision computes of it counts as well."""
    return RequestView(
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        length_cdf=request.length_cdf,
        slo=request.slo,
        request_id=request.request_id,
    )


def _fleet(engines: int, rng: np.random.Generator) -> FleetTable:
    table = FleetTable()
    for i in range(engines):
        profile = load_profile(_KINDS[i % len(_KINDS)]).scaled(float(rng.uniform(0.9, 1.1)))
        row = table.join(f"engine-{i}")
        limits = EngineLimits(_BATCH, profile.kv_capacity_tokens, 131_072)
        table.came_up(row, i + 1, "m", limits, 0.0)
        table.costs(row, profile.model)
    return table


def _requests(rng: np.random.Generator, count: int) -> list[RequestView]:
    made = []
    for i in range(count):
        centre = rng.uniform(np.log(50), np.log(1500))
        mass = np.exp(-(((np.log(lengths.UPPER) - centre) / 0.7) ** 2) / 2)
        cdf = lengths.cdf_from_probabilities(mass)[0]
        slo = Slo(SloClass.DEADLINE, e2e_ms=float(rng.uniform(2_000, 60_000)))
        if i % 3 == 0:
            slo = Slo(SloClass.LATENCY, ttft_ms=2_000.0, tbt_ms=100.0)
        made.append(RequestView("m", int(rng.integers(50, 2_000)), 4_096, cdf, slo, request_id=f"r{i}"))
    return made


def _report(table: FleetTable, rng: np.random.Generator, row: int, now_ms: float, fill: float) -> None:
    """A load report as of an engine about as full as the others, with its curves."""
    running = float(rng.binomial(_BATCH, fill))
    load = {
        "queued": float(rng.integers(2)),
        "running": running,
        "paused": 0.0,
        "queued_prefill_tokens": float(rng.integers(2_000)),
        "expected_output_tokens": 400.0 * running,
        "kv_used_tokens": 900.0 * running,
    }
    free = HORIZONS_MS / 20.0 * (_BATCH - running)
    table.report(row, load, now_ms, (free, 10.0 * free, np.full(len(HORIZONS_MS), 1e5)))


def _percentiles(name: str, seconds: Sequence[float], scale: float) -> dict[str, float]:
    p50, p99 = np.percentile(np.asarray(seconds) * scale, (50, 99))
    return {f"{name}_p50": round(float(p50), 3), f"{name}_p99": round(float(p99), 3)}
