"""Workloads of the GoodServe paper: its mix of agentic calls over mixed GPUs, and its motivation test."""

import numpy as np

from paceline_core.engines.roofline import StepTimes, step_times
from paceline_core.engines.shipped import load_profile
from paceline_core.slo import Slo, SloClass
from paceline_lab.workloads import published as lengths
from paceline_lab.workloads.arrivals import counted_ms, renewal_ms, replayed_rows
from paceline_lab.workloads.jitserve import single_call
from paceline_lab.workloads.lengths import Array, QuantileCurve
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.trace import Job, Workload
from paceline_lab.workloads.traces.mooncake import mooncake_stamps_s

ENGINES = ("h100-8b", "a100-80-8b", "a40-8b", "v100-32-8b")
"""H800 and A800 are taken for H100 and A100 on one device."""
PARTS = {"sql": 1.0, "swe": 1.0, "code": 1.0, "maths": 1.0}
_LENGTHS: dict[str, tuple[QuantileCurve, QuantileCurve]] = {
    "sql": (lengths.SQL_PROMPT, lengths.SQL_OUTPUT),
    "swe": (lengths.SWE_PROMPT, lengths.SWE_OUTPUT),
    "code": (lengths.PROBLEM_PROMPT, lengths.REASONING_OUTPUT.curve),
    "maths": (lengths.PROBLEM_PROMPT, lengths.REASONING_OUTPUT.curve),
}
_SLO_FACTORS = (1.2, 5.0)


def goodserve_mix(request: WorkloadRequest) -> Workload:
    """Calls of SQL and SWE agents and of reasoning on code and maths, each with an end-to-end target.

    The target is 1.2 to 5 times the idle time of a call on the best engine (half of the calls) or on the median one:
    of the call's own prompt and the *mean* output of its app, since a target that follows from the true length would
    tell it. Arrivals are those of the Mooncake conversation trace where `data` is given, spread over its 3 s bins,
    else renewal arrivals.
    """
    rng = np.random.default_rng(request.seed)
    arrivals = _arrivals(request, rng)
    weights = request.weights(PARTS)
    shares = np.array([*weights.values()])
    kinds = rng.choice(len(shares), size=len(arrivals), p=shares / shares.sum())
    low, high = _SLO_FACTORS
    factors = np.exp(rng.uniform(np.log(low), np.log(high), size=len(arrivals)))
    on_best = rng.random(len(arrivals)) < 0.5
    engines = [step_times(load_profile(name)) for name in ENGINES]
    jobs: list[Job] = []
    for kind, app in enumerate(weights):
        prompt, output = _LENGTHS[app]
        places = np.flatnonzero(kinds == kind)
        prompts = prompt.sample(rng, len(places))
        outputs = output.sample(rng, len(places))
        mean_output = output.mean
        for place, prompt_tokens, output_tokens in zip(places, prompts, outputs, strict=True):
            idle = sorted(idle_ms(engine, int(prompt_tokens), mean_output) for engine in engines)
            base = idle[0] if on_best[place] else (idle[1] + idle[2]) / 2
            slo = Slo(SloClass.DEADLINE, e2e_ms=float(base * factors[place] * request.slo_scale))
            call = single_call(int(prompt_tokens), int(output_tokens))
            jobs.append(Job(int(place), app, f"{app}-agents", slo, float(arrivals[place]), (call,)))
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)


def motivation(request: WorkloadRequest) -> Workload:
    """The paper's motivation test: 100 tokens in, 100 to 500 out, 6 s end to end; exactly rate * duration requests.

    600 at 10/s in the paper, on V100, A40, A800 and H800.
    """
    rng = np.random.default_rng(request.seed)
    request.weights({"request": 1.0})
    count = max(1, round(request.rate_per_s * request.duration_s))
    arrivals = counted_ms(count, request.duration_s, request.cv, rng)
    outputs = rng.integers(100, 501, size=count)
    slo = Slo(SloClass.DEADLINE, e2e_ms=6000.0 * request.slo_scale)
    jobs = [
        Job(place, "request", "default", slo, float(arrival), (single_call(100, int(output)),))
        for place, (arrival, output) in enumerate(zip(arrivals, outputs, strict=True))
    ]
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)


def idle_ms(engine: StepTimes, prompt_tokens: int, output_tokens: float) -> float:
    """Time of a call alone on an engine: one prefill, which brings the first token, and a step for each other one."""
    prefill = engine.step_ms(0, 0, prompt_tokens, prompt_tokens**2 / 2)
    return prefill + engine.decode_run_ms(1, prompt_tokens + 1, max(round(output_tokens) - 1, 0))


def _arrivals(request: WorkloadRequest, rng: np.random.Generator) -> Array:
    if request.data is None:
        return renewal_ms(request.rate_per_s, request.duration_s, request.cv, rng)
    stamps_s = mooncake_stamps_s(request.data, rng)
    return replayed_rows(stamps_s, request.rate_per_s, request.duration_s, request.cv, rng)[0]
