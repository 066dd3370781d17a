"""The simulator: skipping changes nothing, nothing is lost, and a seed says everything."""

import math
from dataclasses import replace

import numpy as np
import pytest

from paceline_core.batch.planning import decide
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.registry import make_policy
from paceline_core.slo import Slo, SloClass
from paceline_core.tracker import SloTracker
from paceline_lab.sim import engine as engine_module
from paceline_lab.sim.call import Ending
from paceline_lab.sim.engine_spec import parse_engines
from paceline_lab.sim.estimates import LengthSpec, estimates_for
from paceline_lab.sim.knowledge import learn
from paceline_lab.sim.score import Window, score
from paceline_lab.sim.simulator import Setting, simulate
from paceline_lab.workloads.registry import make_workload
from paceline_lab.workloads.trace import Call, Job, Workload

(A100,) = parse_engines("a100-80-8b")
TRAINING = make_workload("jitserve-mix", rate_per_s=1, duration_s=400, seed=99)
KNOWLEDGE = learn(TRAINING)


def setting(workload, policy="sarathi", engine=A100, lengths="predictor", **more):
    use = make_policy(policy).estimates
    return Setting(
        workload=workload,
        engines=(engine,),
        policy=lambda: make_policy(policy),
        estimates=estimates_for(workload, KNOWLEDGE, LengthSpec.parse(lengths), use, 1),
        knowledge=KNOWLEDGE,
        **more,
    )


def mix(rate=2.0, duration=25.0, seed=1):
    return make_workload("jitserve-mix", rate_per_s=rate, duration_s=duration, seed=seed)


def outcomes(result):
    return {
        call.key: (call.ending, call.preemptions, call.outcome)
        for job in result.jobs
        for call in job.calls.values()
    }


def record_plans(monkeypatch):
    plans = []

    def recording(policy, view, now_ms, plan_length):
        decision = decide(policy, view, now_ms, plan_length)
        plans.append((now_ms, view.row_id[decision.order].tolist(), decision.valid_for_steps))
        return decision

    monkeypatch.setattr(engine_module, "decide", recording)
    return plans


@pytest.mark.parametrize("policy", ["sarathi", "edf", "gmax", "pace"])
def test_skipped_steps_change_no_plan_and_no_token(policy, monkeypatch):
    workload = mix(rate=1.0, duration=7.0)
    plans = record_plans(monkeypatch)
    skipped = simulate(setting(workload, policy, A100.batch(4), end_ms=30_000))
    with_skipping = list(plans)
    plans.clear()
    stepped = simulate(setting(workload, policy, A100.batch(4), end_ms=30_000, skip=False))
    assert skipped.events < stepped.events
    assert len(with_skipping) == len(plans)
    for (at, order, valid), (at_too, order_too, valid_too) in zip(with_skipping, plans, strict=True):
        assert at == pytest.approx(at_too, rel=1e-9)
        assert order == order_too
        assert valid == valid_too
    one, two = outcomes(skipped), outcomes(stepped)
    assert one.keys() == two.keys()
    for key, (ending, preemptions, outcome) in one.items():
        assert (ending, preemptions) == two[key][:2]
        if outcome is not None:
            other = two[key][2]
            assert (outcome.tokens, outcome.tokens_in_time) == (other.tokens, other.tokens_in_time)
            for name in ("first_token_ms", "last_token_ms", "longest_gap_ms"):
                assert getattr(outcome, name) == pytest.approx(getattr(other, name), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("policy", ["fcfs", "sarathi"])
def test_planning_anew_at_every_step_changes_nothing(policy):
    workload = mix(rate=1.0, duration=5.0)
    engine = A100.batch(8)
    held = simulate(setting(workload, policy, engine))
    anew = simulate(setting(workload, policy, engine, replan_every_step=True))
    one, two = outcomes(held), outcomes(anew)
    assert {key: value[0] for key, value in one.items()} == {key: value[0] for key, value in two.items()}
    for key, (_, _, outcome) in one.items():
        assert outcome.last_token_ms == pytest.approx(two[key][2].last_token_ms, rel=1e-6)


def test_a_seed_says_everything():
    runs = [outcomes(simulate(setting(mix(seed=3), "gmax", end_ms=30_000))) for _ in range(2)]
    assert runs[0] == runs[1]
    other = outcomes(simulate(setting(mix(seed=4), "gmax", end_ms=30_000)))
    assert other != runs[0]


@pytest.mark.parametrize("policy", ["sarathi", "edf", "gmax"])
def test_every_token_is_made_once_and_memory_is_given_back(policy):
    workload = mix(duration=10.0)
    small = replace(A100.profile, kv_capacity_tokens=24_000)
    result = simulate(setting(workload, policy, replace(A100, profile=small, max_batch=16)))
    assert len(result.jobs) == len(workload.jobs)
    for job in result.jobs:
        for call in job.calls.values():
            if call.ending is Ending.DONE:
                assert call.outcome.tokens == call.call.output_tokens
    assert all(job.completed for job in result.jobs if not job.dead)
    (engine,) = result.engines
    assert engine.kv_used == 0
    assert not len(engine.table)


def test_too_little_memory_evicts_and_computes_again():
    slo = Slo(SloClass.DEADLINE, e2e_ms=60_000.0)
    jobs = [Job(n, "chat", f"t{n}", slo, float(n), (Call(0, (), 200, 400, 0.0),)) for n in range(6)]
    workload = Workload.of("made", 1, jobs, 1_000.0, 6.0)
    small = replace(A100.profile, kv_capacity_tokens=1_500)
    result = simulate(setting(workload, "sarathi", replace(A100, profile=small, max_context_tokens=1_400)))
    assert all(job.completed for job in result.jobs)
    calls = [call for job in result.jobs for call in job.calls.values()]
    assert sum(call.recomputed_tokens for call in calls) > 0
    assert sum(call.preemptions for call in calls) > 0


def test_a_single_call_takes_the_time_of_its_steps():
    slo = Slo(SloClass.LATENCY, ttft_ms=1_000.0, tbt_ms=100.0)
    job = Job(0, "chat", "t", slo, 0.0, (Call(0, (), 1_000, 50, 0.0),))
    result = simulate(setting(Workload.of("one", 1, [job], 1_000.0, 1.0)))
    (call,) = result.jobs[0].calls.values()
    times = engine_module.step_times(A100.profile)
    chunks = [(512, 0), (488, 512)]
    first = sum(times.step_ms(0, 0, n, n * (before + n / 2), before) for n, before in chunks)
    assert call.outcome.first_token_ms == pytest.approx(first)
    assert call.outcome.last_token_ms == pytest.approx(first + times.decode_run_ms(1, 1_001, 49))
    assert call.outcome.attained


def test_stages_wait_for_their_parents_and_tools():
    slo = Slo(SloClass.TASK, e2e_ms=60_000.0, task_id="a")
    calls = (
        Call(0, (), 100, 20, 0.0),
        Call(1, (0,), 100, 10, 500.0),
        Call(1, (0,), 100, 30, 200.0),
        Call(2, (1, 2), 100, 10, 0.0),
    )
    result = simulate(setting(Workload.of("t", 1, [Job(0, "x", "t", slo, 10.0, calls)], 1_000.0, 1.0)))
    (job,) = result.jobs
    ends = {place: call.released_ms + call.outcome.last_token_ms for place, call in job.calls.items()}
    assert job.completed
    assert job.calls[1].released_ms == pytest.approx(ends[0] + 500)
    assert job.calls[2].released_ms == pytest.approx(ends[0] + 200)
    assert job.calls[3].released_ms == pytest.approx(max(ends[1], ends[2]))
    assert job.last_ms == pytest.approx(ends[3])
    whole = score(result, Window(0.0, 1_000.0)).classes[0]
    assert (whole.attained, whole.request_goodput) == (1, 1.0)
    assert whole.token_goodput_1_8 == 400 + 8 * 70


def test_a_run_of_tokens_is_tracked_as_its_steps_are():
    rng = np.random.default_rng(5)
    one, two = SloTracker(8), SloTracker(8)
    slos = [
        Slo(SloClass.LATENCY, ttft_ms=50.0, tbt_ms=10.0),
        Slo(SloClass.DEADLINE, e2e_ms=120.0),
        Slo(SloClass.BEST_EFFORT),
        Slo(SloClass.LATENCY, ttft_ms=20.0, tbt_ms=13.0),
    ]
    for tracker in (one, two):
        for slot, slo in enumerate(slos):
            tracker.begin(slot, slo, 5.0 * slot)
    slots = np.arange(4)
    index, now = np.zeros(4, dtype=np.int64), 20.0
    for _ in range(5):
        times = now + np.cumsum(rng.uniform(2.0, 20.0, rng.integers(1, 6)))
        fresh = one.tokens_run(slots, index, times)
        for step, at in enumerate(times.tolist()):
            fresh_too = two.tokens(slots, index + step, np.ones(4, dtype=np.int64), at)
            if step == 0:
                assert fresh.tolist() == fresh_too.tolist()
        index, now = index + len(times), float(times[-1])
        assert one.late_tokens(slots).tolist() == two.late_tokens(slots).tolist()
    for slot in range(4):
        a, b = one.end(slot, now, completed=True), two.end(slot, now, completed=True)
        assert (a.tokens, a.tokens_in_time, a.attained) == (b.tokens, b.tokens_in_time, b.attained)
        assert a.longest_gap_ms == pytest.approx(b.longest_gap_ms)
        assert a.first_token_ms == b.first_token_ms
        assert math.isclose(a.last_token_ms, b.last_token_ms)


def test_policies_never_see_the_truth():
    workload = mix()
    truth = np.array([call.output_tokens for job in workload.jobs for call in job.calls])
    seen = estimates_for(workload, KNOWLEDGE, LengthSpec(), EstimateUse.PREDICTED, 1)
    assert (seen.limit >= truth).all()
    assert len(np.unique(seen.limit)) < 16
    prior = estimates_for(workload, KNOWLEDGE, LengthSpec(), EstimateUse.PRIOR, 1)
    assert len(np.unique(prior.initial, axis=0)) <= len(SloClass)
