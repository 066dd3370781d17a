"""Scoring, against cases worked out by hand."""

import math

import numpy as np
import pytest

from paceline_core.slo import Slo, SloClass
from paceline_lab.live.score import CallRecord, JobRecord, percentiles, score_class, score_job

LATENCY = Slo(SloClass.LATENCY, ttft_ms=100.0, tbt_ms=10.0)
DEADLINE = Slo(SloClass.DEADLINE, e2e_ms=500.0)
TASK = Slo(SloClass.TASK, e2e_ms=1000.0, task_id="t")


def call(
    times: list[float], *, prompt: int = 7, ended: bool = True, sent: float = 0.0, stage: int = 0
) -> CallRecord:
    return CallRecord(
        "r",
        prompt,
        np.array(times, dtype=np.float64),
        sent,
        times[-1] if ended and times else None,
        "stop",
        stage=stage,
    )


def job(slo: Slo, *calls: CallRecord, completed: bool = True, arrival_s: float = 0.0) -> JobRecord:
    return JobRecord(0, arrival_s, slo, calls, completed)


def test_latency_tokens_count_one_by_one_along_the_time_line() -> None:
    # due: 100, 110, 120, 130; the third is late, the fourth has caught up
    score = score_job(job(LATENCY, call([100.0, 110.0, 121.0, 130.0])))
    assert (score.attained, score.output_tokens_in_time, score.prompt_tokens_in_time) == (False, 3, 7)
    score = score_job(job(LATENCY, call([90.0, 110.0, 120.0])))
    assert (score.attained, score.output_tokens_in_time) == (True, 3)


def test_latency_prompt_counts_only_with_the_first_token() -> None:
    score = score_job(job(LATENCY, call([101.0, 102.0])))
    assert (score.attained, score.output_tokens_in_time, score.prompt_tokens_in_time) == (False, 1, 0)


def test_latency_unfinished_is_a_miss_though_its_tokens_were_in_time() -> None:
    score = score_job(job(LATENCY, call([50.0, 60.0], ended=False), completed=False))
    assert (score.attained, score.output_tokens_in_time, score.prompt_tokens_in_time) == (False, 2, 7)
    assert not score_job(job(LATENCY, call([]), completed=True)).attained


def test_deadline_is_all_or_nothing() -> None:
    assert score_job(job(DEADLINE, call([100.0, 500.0]))).attained
    late = score_job(job(DEADLINE, call([100.0, 500.1])))
    assert (late.attained, late.output_tokens_in_time, late.prompt_tokens_in_time) == (False, 0, 0)
    assert not score_job(job(DEADLINE, call([100.0], ended=False), completed=False)).attained


def test_task_counts_all_its_calls_if_the_last_one_is_in_time() -> None:
    calls = (call([100.0, 200.0]), call([450.0, 990.0], sent=300.0, stage=1))
    score = score_job(job(TASK, *calls))
    assert (score.attained, score.output_tokens_in_time, score.prompt_tokens_in_time) == (True, 4, 14)
    late = (calls[0], call([450.0, 1001.0], sent=300.0, stage=1))
    assert score_job(job(TASK, *late)).output_tokens_in_time == 0
    assert not score_job(job(TASK, calls[0], completed=False)).attained  # the second stage never came


def test_class_score_of_three_jobs_by_hand() -> None:
    jobs = [
        job(LATENCY, call([50.0, 100.0, 105.0])),  # attained, 3 of 3 tokens
        job(LATENCY, call([100.0, 200.0])),  # 1 of 2 tokens
        job(LATENCY, completed=False),  # never sent an answer
        job(DEADLINE, call([1.0])),  # another class
    ]
    score = score_class(SloClass.LATENCY, jobs, window_s=2.0)
    assert (score.jobs, score.attained, score.unfinished) == (3, 1, 1)
    assert score.attainment == pytest.approx(1 / 3)
    assert score.request_goodput == 0.5
    assert score.token_goodput_1_1 == (7 + 7 + 3 + 1) / 2
    assert score.token_goodput_1_8 == (14 + 8 * 4) / 2
    assert (score.output_tokens, score.wasted_tokens) == (5, 1)
    assert (score.ttft_ms.p50, score.ttft_ms.p95) == (50.0, 100.0)  # of the calls that were made
    assert (score.tbt_ms.p50, score.tbt_ms.p99) == (27.5, 100.0)
    assert score.ttlt_ms.p50 == 200.0
    assert math.isinf(score.ttlt_ms.p95)


def test_later_calls_of_a_task_have_their_first_token_measured_from_their_own_start() -> None:
    jobs = [job(TASK, call([100.0, 200.0]), call([450.0, 500.0], sent=300.0, stage=1))]
    assert score_class(SloClass.TASK, jobs, 1.0).ttft_ms.p99 == 150.0


def test_best_effort_is_reported_apart() -> None:
    score = score_class(SloClass.BEST_EFFORT, [job(Slo(SloClass.BEST_EFFORT), call([9999.0]))], 1.0)
    assert (score.attained, score.token_goodput_1_1, score.request_goodput, score.wasted_tokens) == (
        1,
        0.0,
        0.0,
        0,
    )


def test_percentiles_are_observed_values() -> None:
    found = percentiles([float(value) for value in range(1, 101)])
    assert (found.p50, found.p95, found.p99) == (50.0, 95.0, 99.0)
    found = percentiles([1.0, 2.0, math.inf])
    assert (found.p50, found.p95) == (2.0, math.inf)
    assert math.isnan(percentiles([]).p50)
