"""Scores a simulation by the rules of the harness: a fixed window, per class, goodput over the window.

What counts is what `paceline_lab.live.score` says: of a stream the tokens in time, of a deadline or a task all or
nothing. Jobs that arrived in the window count, whenever they end; what has not ended when the simulation stops is a
miss.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline_core.slo import SloClass
from paceline_lab.live.score import PREFILL_DECODE_WEIGHTS, ClassScore, Percentiles, percentiles
from paceline_lab.sim.call import Ending, SimCall, SimJob
from paceline_lab.sim.simulator import Result

P_MEET_BINS = 10
STARVED_SHARE = 0.999
"""The starvation tail: this share of calls had their first token within it."""


@dataclass(frozen=True, slots=True)
class Window:
    """Jobs that arrive in it are scored; milliseconds of the simulation."""

    begin_ms: float
    end_ms: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ms - self.begin_ms) / 1e3

    def holds(self, job: SimJob) -> bool:
        """True when the job is scored."""
        return self.begin_ms <= job.job.arrival_ms < self.end_ms


@dataclass(frozen=True, slots=True)
class Fairness:
    """Goodput of each tenant as a share of what it asked for."""

    tenants: int
    min_share: float
    jain: float


@dataclass(frozen=True, slots=True)
class SimScore:
    """One simulated run."""

    classes: tuple[ClassScore, ...]
    preemptions_per_call: float
    recomputed_tokens: int
    shed: int
    cancelled: int
    starvation_ms: float
    """Time to first token at STARVED_SHARE; infinite where more never started."""
    fairness: Fairness
    output_tokens_per_s: float
    """Raw throughput, of all that was generated while the simulation ran."""


@dataclass(frozen=True, slots=True)
class _JobScore:
    attained: bool
    prompt_tokens: int
    output_tokens: int


def score_job(job: SimJob) -> _JobScore:
    """What counts of a job."""
    slo = job.job.slo
    if slo.slo_class is SloClass.BEST_EFFORT:
        return _JobScore(job.completed, 0, 0)
    if slo.slo_class is SloClass.LATENCY:
        call = job.calls.get(0)
        outcome = None if call is None else call.outcome
        if call is None or outcome is None or not outcome.tokens:
            return _JobScore(False, 0, 0)
        prompt = call.call.prompt_tokens if outcome.first_token_ms <= slo.ttft_ms else 0
        return _JobScore(job.completed and outcome.attained, prompt, outcome.tokens_in_time)
    if not job.completed or job.last_ms - job.job.arrival_ms > slo.e2e_ms:
        return _JobScore(False, 0, 0)
    return _JobScore(True, job.job.prompt_tokens, job.job.output_tokens)


def score(result: Result, window: Window) -> SimScore:
    """The score of a run. Live calls are given the outcome they have."""
    _close(result)
    jobs = [job for job in result.jobs if window.holds(job)]
    by_class: dict[SloClass, list[SimJob]] = defaultdict(list)
    for job in jobs:
        by_class[job.job.slo.slo_class].append(job)
    classes = tuple(_class_score(kind, by_class[kind], window.seconds) for kind in SloClass if by_class[kind])
    calls = [call for job in jobs for call in job.calls.values()]
    firsts = [_ttft_ms(call) for call in calls]
    return SimScore(
        classes=classes,
        preemptions_per_call=sum(call.preemptions for call in calls) / max(1, len(calls)),
        recomputed_tokens=sum(call.recomputed_tokens for call in calls),
        shed=sum(call.ending is Ending.SHED for call in calls),
        cancelled=sum(call.ending is Ending.CANCELLED for call in calls),
        starvation_ms=_at_share(firsts, STARVED_SHARE),
        fairness=_fairness(jobs),
        output_tokens_per_s=sum(engine.output_tokens for engine in result.engines)
        / max(result.now_ms, 1.0)
        * 1e3,
    )


def p_meet_bins(result: Result, window: Window) -> list[list[float]]:
    """What P(meet) was given to calls of the window, and what came of it: for each tenth of it [calls, sum of P(meet),
    calls in time]. Jobs of one call, whose end is the call's; none where the policy does not say."""
    bins = [[0.0, 0.0, 0.0] for _ in range(P_MEET_BINS)]
    for job in result.jobs:
        call = job.calls.get(0)
        if len(job.job.calls) > 1 or call is None or call.p_meet < 0 or not window.holds(job):
            continue
        found = bins[min(int(call.p_meet * P_MEET_BINS), P_MEET_BINS - 1)]
        for place, value in enumerate((1.0, call.p_meet, float(score_job(job).attained))):
            found[place] += value
    return bins


def _close(result: Result) -> None:
    """Calls that still live get the outcome that they have now."""
    for engine in result.engines:
        for call in engine.table:
            if call.outcome is None:
                call.outcome = engine.tracker.end(call.row, result.now_ms, completed=False)


def _class_score(kind: SloClass, jobs: Sequence[SimJob], window_s: float) -> ClassScore:
    scores = [score_job(job) for job in jobs]
    prompts = sum(score.prompt_tokens for score in scores)
    outputs = sum(score.output_tokens for score in scores)
    goodputs = [
        (prefill * prompts + decode * outputs) / window_s for prefill, decode in PREFILL_DECODE_WEIGHTS
    ]
    calls = [call for job in jobs for call in job.calls.values()]
    made = sum(call.outcome.tokens for call in calls if call.outcome is not None)
    attained = sum(score.attained for score in scores)
    promised = kind is not SloClass.BEST_EFFORT
    return ClassScore(
        slo_class=kind,
        jobs=len(jobs),
        attained=attained,
        unfinished=sum(not job.completed for job in jobs),
        token_goodput_1_1=goodputs[0],
        token_goodput_1_8=goodputs[1],
        request_goodput=attained / window_s if promised else 0.0,
        ttft_ms=percentiles([_ttft_ms(call) for call in calls]),
        tbt_ms=_tbt_percentiles(calls),
        ttlt_ms=percentiles(
            [job.last_ms - job.job.arrival_ms if job.completed else math.inf for job in jobs]
        ),
        output_tokens=made,
        wasted_tokens=made - outputs if promised else 0,
    )


def _ttft_ms(call: SimCall) -> float:
    outcome = call.outcome
    return math.inf if outcome is None or not outcome.tokens else outcome.first_token_ms


def _tbt_percentiles(calls: Iterable[SimCall]) -> Percentiles:
    """Of the mean time between the tokens of each call."""
    outcomes = [call.outcome for call in calls if call.outcome is not None and call.outcome.tokens > 1]
    return percentiles([(o.last_token_ms - o.first_token_ms) / (o.tokens - 1) for o in outcomes])


def _fairness(jobs: Sequence[SimJob]) -> Fairness:
    asked: dict[str, float] = defaultdict(float)
    good: dict[str, float] = defaultdict(float)
    for job in jobs:
        if job.job.slo.slo_class is SloClass.BEST_EFFORT:
            continue
        counted = score_job(job)
        asked[job.job.tenant] += job.job.prompt_tokens + job.job.output_tokens
        good[job.job.tenant] += counted.prompt_tokens + counted.output_tokens
    if not asked:
        return Fairness(0, math.nan, math.nan)
    shares = np.array([good[tenant] / asked[tenant] for tenant in asked])
    squares = float((shares**2).sum())
    jain = float(shares.sum()) ** 2 / (len(shares) * squares) if squares else 1.0
    return Fairness(len(shares), float(shares.min()), jain)


def _at_share(values: Sequence[float], share: float) -> float:
    if not values:
        return math.nan
    ordered = np.sort(np.asarray(values))
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])
