"""Scores calls against their objectives: pure arithmetic on recorded times.

Times are milliseconds since the scheduled arrival of the application request (for a call of a task: of the task), where
the client stands. What never ended is a miss. Goodput divides by the scored window, never by the drain.

What counts (weights are those of a prompt token and of an output token):
* latency: output token i, if it arrived by TTFT + i * TBT; the prompt, if the first token was in time. The
  request counts if it ended well and every token was in time.
* deadline, task: all tokens of prompt and output if the last one of the request (of all calls of the task) was in
  time, else none.
* best effort: reported apart, in no goodput.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.slo import Slo, SloClass

PREFILL_DECODE_WEIGHTS = ((1.0, 1.0), (1.0, 8.0))


@dataclass(frozen=True)
class CallRecord:
    """One call as the client saw it. `token_ms`: arrival of each output token; `ended_ms` None: it never ended well."""

    request_id: str
    prompt_tokens: int
    token_ms: NDArray[np.float64]
    sent_ms: float
    ended_ms: float | None
    finish: str
    engine_id: str = ""
    attempts: int = 1
    stage: int = 0

    @property
    def output_tokens(self) -> int:
        """Output tokens that arrived."""
        return len(self.token_ms)


@dataclass(frozen=True)
class JobRecord:
    """One application request: its objective and its calls. `completed`: every call of it ended well."""

    number: int
    arrival_s: float
    slo: Slo
    calls: tuple[CallRecord, ...]
    completed: bool


@dataclass(frozen=True, slots=True)
class Percentiles:
    """P50, P95 and P99; infinite where that share never happened, not a number without samples."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class over the scored window. Rates are per second of the window."""

    slo_class: SloClass
    jobs: int
    attained: int
    unfinished: int
    token_goodput_1_1: float
    token_goodput_1_8: float
    request_goodput: float
    ttft_ms: Percentiles
    tbt_ms: Percentiles
    ttlt_ms: Percentiles
    output_tokens: int
    wasted_tokens: int

    @property
    def attainment(self) -> float:
        """Attained share of the jobs; not a number without jobs."""
        return self.attained / self.jobs if self.jobs else float("nan")


@dataclass(frozen=True, slots=True)
class JobScore:
    """One job: did it count, and how many tokens did."""

    attained: bool
    prompt_tokens_in_time: int
    output_tokens_in_time: int


def score_job(job: JobRecord) -> JobScore:
    """Score one job by the rules above."""
    prompts = sum(call.prompt_tokens for call in job.calls)
    outputs = sum(call.output_tokens for call in job.calls)
    if job.slo.slo_class is SloClass.LATENCY:
        return _score_latency(job)
    if job.slo.slo_class is SloClass.BEST_EFFORT:
        return JobScore(job.completed, 0, 0)
    ends = [call.ended_ms for call in job.calls]
    in_time = job.completed and all(end is not None and end <= job.slo.e2e_ms for end in ends)
    return JobScore(True, prompts, outputs) if in_time else JobScore(False, 0, 0)


def _score_latency(job: JobRecord) -> JobScore:
    prompt_tokens, output_tokens, all_in_time = 0, 0, job.completed
    for call in job.calls:
        due = job.slo.ttft_ms + np.arange(call.output_tokens) * job.slo.tbt_ms
        in_time = call.token_ms <= due
        output_tokens += int(np.count_nonzero(in_time))
        all_in_time = all_in_time and bool(in_time.all()) and call.output_tokens > 0
        if call.output_tokens and in_time[0]:
            prompt_tokens += call.prompt_tokens
    return JobScore(all_in_time, prompt_tokens, output_tokens)


def score_class(slo_class: SloClass, jobs: Iterable[JobRecord], window_s: float) -> ClassScore:
    """Score the jobs of one class that arrived in a window of `window_s` seconds."""
    mine = [job for job in jobs if job.slo.slo_class is slo_class]
    scores = [score_job(job) for job in mine]
    prompt_in_time = sum(score.prompt_tokens_in_time for score in scores)
    output_in_time = sum(score.output_tokens_in_time for score in scores)
    outputs = sum(call.output_tokens for job in mine for call in job.calls)
    counted = slo_class is not SloClass.BEST_EFFORT
    attained = sum(score.attained for score in scores)
    goodputs = [
        (prefill * prompt_in_time + decode * output_in_time) / window_s
        for prefill, decode in PREFILL_DECODE_WEIGHTS
    ]
    return ClassScore(
        slo_class=slo_class,
        jobs=len(mine),
        attained=attained,
        unfinished=sum(not job.completed for job in mine),
        token_goodput_1_1=goodputs[0],
        token_goodput_1_8=goodputs[1],
        request_goodput=attained / window_s if counted else 0.0,
        ttft_ms=percentiles([_ttft_ms(call) for job in mine for call in job.calls]),
        tbt_ms=percentiles([_tbt_ms(call) for job in mine for call in job.calls if call.output_tokens > 1]),
        ttlt_ms=percentiles([_ttlt_ms(job) for job in mine]),
        output_tokens=outputs,
        wasted_tokens=outputs - output_in_time if counted else 0,
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    """P50, P95, P99 as observed values (no interpolation), so that what never happened stays infinite."""
    if not values:
        return Percentiles(float("nan"), float("nan"), float("nan"))
    ordered = np.sort(np.array(values, dtype=np.float64))
    ranks = [max(0, int(np.ceil(share * len(ordered))) - 1) for share in (0.50, 0.95, 0.99)]
    return Percentiles(*(float(ordered[rank]) for rank in ranks))


def _ttft_ms(call: CallRecord) -> float:
    """From the moment the call was due to be sent (a later call of a task: when it was sent)."""
    if not call.output_tokens:
        return float("inf")
    return float(call.token_ms[0]) - (call.sent_ms if call.stage else 0.0)


def _tbt_ms(call: CallRecord) -> float:
    """Mean time between the tokens of one call."""
    return float(call.token_ms[-1] - call.token_ms[0]) / (call.output_tokens - 1)


def _ttlt_ms(job: JobRecord) -> float:
    """To the last token of the last call."""
    if not job.completed:
        return float("inf")
    return max(call.ended_ms for call in job.calls if call.ended_ms is not None)
