"""Many tenants of unequal size, each bursty in its own way, on a daily rhythm: heavy tails of every kind.

The shape is that of public production traces: shares of tenants fall like Zipf's law, half of the clients of ServeGen
have a coefficient of variation under 2 and some of 9 (arXiv 2505.09999), rates swing by a third over a day. A day is
squeezed into the workload's duration.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from paceline_core.slo import Slo
from paceline_lab.workloads import published as lengths
from paceline_lab.workloads.arrivals import renewal_ms, warped_ms
from paceline_lab.workloads.jitserve import single_call
from paceline_lab.workloads.objectives import BEST_EFFORT, PAPER, Targets
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.research import chain_of_stages
from paceline_lab.workloads.trace import Call, Job, Workload

PARTS = {"chat": 4.0, "code": 3.0, "long": 1.0, "reasoning": 1.0, "agent": 0.5, "batch": 0.5}
"""Weights of the apps by job. A tenant has one app."""
TENANTS = 40
ZIPF = 1.1
DAILY_SWING = 0.35
_CV_QUANTILES = ((0.0, 0.25, 0.5, 0.75, 0.95, 1.0), (0.9, 0.95, 1.19, 2.06, 8.86, 9.7))
"""Levels and coefficients of variation of ServeGen's clients (language, large model)."""
MAX_PROMPT_TOKENS = 32_768
"""Longer prompts are cut: no engine profile here is meant for more."""

Maker = Callable[[np.random.Generator, Targets, int], tuple[Slo, tuple[Call, ...]]]


def production(request: WorkloadRequest) -> Workload:
    """Every tenant's arrivals drawn on their own, with `cv` multiplying its coefficient of variation."""
    rng = np.random.default_rng(request.seed)
    targets = PAPER.scaled(request.slo_scale)
    jobs: list[Job] = []
    for tenant, (app, rate_per_s) in enumerate(tenant_rates(request, rng)):
        cv = float(np.interp(rng.random(), *_CV_QUANTILES)) * request.cv
        times = renewal_ms(rate_per_s, request.duration_s, cv, rng)
        times = warped_ms(times, request.duration_s, DAILY_SWING, phase=0.75)
        for time in times:
            number = len(jobs)
            slo, calls = _MAKERS[app](rng, targets, number)
            jobs.append(Job(number, app, f"t{tenant:02d}", slo, float(time), calls))
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)


def tenant_rates(request: WorkloadRequest, rng: np.random.Generator) -> list[tuple[str, float]]:
    """App and rate of every tenant. Rates within an app fall as Zipf's law says and add up to the app's share."""
    weights = {app: weight for app, weight in request.weights(PARTS).items() if weight > 0}
    total = sum(weights.values())
    apps = [*weights, *rng.choice([*weights], size=max(0, TENANTS - len(weights)))]
    rates = []
    for app, weight in weights.items():
        zipf = 1.0 / np.arange(1, apps.count(app) + 1) ** ZIPF
        rates += [(app, float(request.rate_per_s * weight / total * share)) for share in zipf / zipf.sum()]
    return rates


def _chat(rng: np.random.Generator, targets: Targets, _number: int) -> tuple[Slo, tuple[Call, ...]]:
    return targets.latency(), _one(rng, lengths.AZURE_CONV_PROMPT, lengths.AZURE_CONV_OUTPUT)


def _code(rng: np.random.Generator, targets: Targets, _number: int) -> tuple[Slo, tuple[Call, ...]]:
    return targets.deadline(), _one(rng, lengths.AZURE_CODE_PROMPT, lengths.AZURE_CODE_OUTPUT)


def _long(rng: np.random.Generator, targets: Targets, _number: int) -> tuple[Slo, tuple[Call, ...]]:
    return targets.scaled(2.0).latency(), _one(rng, lengths.MOONCAKE_PROMPT, lengths.MOONCAKE_OUTPUT)


def _reasoning(rng: np.random.Generator, targets: Targets, _number: int) -> tuple[Slo, tuple[Call, ...]]:
    return targets.scaled(3.0).deadline(), _one(rng, lengths.REASONING_PROMPT, lengths.REASONING_OUTPUT)


def _batch(rng: np.random.Generator, targets: Targets, _number: int) -> tuple[Slo, tuple[Call, ...]]:
    return BEST_EFFORT, _one(rng, lengths.MOONCAKE_PROMPT, lengths.MOONCAKE_OUTPUT)


def _agent(rng: np.random.Generator, targets: Targets, number: int) -> tuple[Slo, tuple[Call, ...]]:
    """A chain of calls whose prompt holds all that went before; 6 to 30 calls, a tool between them."""
    count = int(rng.integers(6, 31))
    outputs = lengths.SWE_OUTPUT.sample(rng, count)
    seen = np.rint(np.exp(rng.normal(5.0, 1.3, size=count))).astype(np.int64)  # what tools show: median 150
    prompts = int(rng.integers(1150, 3200)) + np.cumsum(np.concatenate([[0], (outputs + seen)[:-1]]))
    gaps_ms = lengths.TOOL_GAP_S.at(rng.random(count)) * 1e3
    gaps_ms[0] = 0.0
    prompts = np.minimum(prompts, MAX_PROMPT_TOKENS)
    calls = chain_of_stages(np.arange(count), prompts, outputs, gaps_ms)
    grown = tuple(
        replace(
            call, shared_prefix_tokens=min(before.prompt_tokens + before.output_tokens, call.prompt_tokens)
        )
        for before, call in pairwise(calls)
    )
    expected_tools_ms = (count - 1) * lengths.TOOL_GAP_S.mean * 1e3
    return targets.task(f"task-{number}", count, expected_tools_ms), (calls[0], *grown)


def _one(rng: np.random.Generator, prompt: lengths.Published, output: lengths.Published) -> tuple[Call, ...]:
    prompt_tokens = min(int(prompt.curve.sample(rng, 1)[0]), MAX_PROMPT_TOKENS)
    return (single_call(prompt_tokens, int(output.curve.sample(rng, 1)[0])),)


_MAKERS: dict[str, Maker] = {
    "chat": _chat,
    "code": _code,
    "long": _long,
    "reasoning": _reasoning,
    "agent": _agent,
    "batch": _batch,
}
