"""Bounds: the exact solver against exhaustive search, and fluid >= clairvoyant >= any schedule."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("scipy", reason="bounds need the training requirements")

from paceline_core.engines.profile import Profile, Roofline, linear_of
from paceline_core.engines.roofline import StepTimes, step_times
from paceline_core.engines.shipped import load_profile
from paceline_core.slo import Slo, SloClass
from paceline_lab.bounds.capacity import EngineGroup, capacity_of, grouped
from paceline_lab.bounds.clairvoyant import Optimum, SlotEngine, clairvoyant
from paceline_lab.bounds.fluid import fluid_bound
from paceline_lab.bounds.program import MissingSolverError, Program, maximum
from paceline_lab.workloads.registry import make_workload
from paceline_lab.workloads.trace import Call, Job, Workload

STEP_MS = 100.0
SLACK = 1e-6
Priority = Callable[[Job, int, float], float]


def slot_group(engine: SlotEngine) -> EngineGroup:
    """The same engine for the fluid bound: steps of overhead alone."""
    roofline = Roofline(1.0, 2.0, 1.0, 1.0, 1e15, 1e15, engine.step_ms)
    profile = Profile(
        "slots", "test", kv_capacity_tokens=1 << 20, kv_bytes_per_token=0, run_set_change_cost_ms=0.0,
        roofline=roofline, **linear_of(roofline, 0.0),
    )  # fmt: skip
    return EngineGroup(profile, 1, engine.max_batch, engine.prefill_chunk_tokens)


def deadline(number: int, arrival: int, prompt: int, output: int, steps: int) -> Job:
    slo = Slo(SloClass.DEADLINE, e2e_ms=steps * STEP_MS)
    return Job(number, "app", "t", slo, arrival * STEP_MS, (Call(0, (), prompt, output, 0.0),))


def stream(number: int, arrival: int, prompt: int, output: int, first: int, each: float) -> Job:
    slo = Slo(SloClass.LATENCY, ttft_ms=first * STEP_MS, tbt_ms=each * STEP_MS)
    return Job(number, "app", "t", slo, arrival * STEP_MS, (Call(0, (), prompt, output, 0.0),))


def task(number: int, arrival: int, outputs: Sequence[int], steps: int, tool: int = 0) -> Job:
    """First call, then calls side by side, then a last one."""
    calls = [Call(0, (), 2, outputs[0], 0.0)]
    calls += [Call(1, (0,), 2, output, tool * STEP_MS) for output in outputs[1:-1]]
    calls.append(Call(2, tuple(range(1, len(calls))), 2, outputs[-1], 0.0))
    slo = Slo(SloClass.TASK, e2e_ms=steps * STEP_MS, task_id=f"task-{number}")
    return Job(number, "app", "t", slo, arrival * STEP_MS, tuple(calls))


def random_jobs(rng: np.random.Generator, count: int) -> list[Job]:
    jobs = []
    for number in range(count):
        arrival, kind = int(rng.integers(0, 8)), rng.integers(3)
        prompt, output = int(rng.integers(1, 20)), int(rng.integers(1, 7))
        if kind == 0:
            jobs.append(deadline(number, arrival, prompt, output, int(rng.integers(2, 12))))
        elif kind == 1:
            each = float(rng.choice([1.0, 1.5, 2.0]))
            jobs.append(stream(number, arrival, prompt, output, int(rng.integers(1, 5)), each))
        else:
            outputs = rng.integers(1, 4, size=int(rng.integers(3, 5))).tolist()
            jobs.append(task(number, arrival, outputs, int(rng.integers(4, 14)), int(rng.integers(0, 2))))
    return jobs


def workload(jobs: Sequence[Job]) -> Workload:
    return Workload.of("test", 0, jobs, max(job.arrival_ms for job in jobs) + 1, 1.0)


def run(
    jobs: Sequence[Job], times: StepTimes, max_batch: int, chunk: int, priority: Priority
) -> tuple[float, float, float]:
    """Serve by priority, step by step with chunked prefill: tokens at 1:1 and 1:8, and requests."""
    done: dict[tuple[int, int], int] = {}
    tokens: dict[tuple[int, int], list[float]] = {}
    ends: dict[tuple[int, int], float] = {}
    now = 0.0
    every = [(job, place) for job in jobs for place in range(len(job.calls))]
    while len(ends) < len(every):
        ready = [
            (priority(job, place, now), number)
            for number, (job, place) in enumerate(every)
            if (job.job_id, place) not in ends
            and all((job.job_id, parent) in ends for parent in job.calls[place].parents)
            and now >= release_ms(job, place, ends) - SLACK
        ]
        chosen = [every[number] for _, number in sorted(ready)[:max_batch]]
        decodes = context = prefill = products = before = 0.0
        moves = []
        for job, place in chosen:
            key, call = (job.job_id, place), job.calls[place]
            kv = done.get(key, 0)
            if kv < call.prompt_tokens:
                part = min(chunk, call.prompt_tokens - kv)
                prefill, before, products = prefill + part, before + kv, products + part * (kv + part / 2)
            else:
                part, decodes, context = 1, decodes + 1, context + kv + 1
            moves.append((key, call, kv + part))
        if not moves:
            now += min(STEP_MS / 10, 1.0) if times.base_ms < 50 else times.base_ms
            continue
        now += times.step_ms(decodes, context, prefill, products, before)
        for key, call, kv in moves:
            done[key] = kv
            if kv >= call.prompt_tokens:
                tokens.setdefault(key, []).append(now)
                if len(tokens[key]) == call.output_tokens:
                    ends[key] = now
    return score(jobs, tokens, ends)


def release_ms(job: Job, place: int, ends: dict[tuple[int, int], float]) -> float:
    call = job.calls[place]
    return max([job.arrival_ms, *(ends[job.job_id, parent] for parent in call.parents)]) + call.tool_ms


def score(
    jobs: Sequence[Job], tokens: dict[tuple[int, int], list[float]], ends: dict[tuple[int, int], float]
) -> tuple[float, float, float]:
    prompts = outputs = requests = 0
    for job in jobs:
        if job.slo.slo_class is SloClass.LATENCY:
            times = tokens[job.job_id, 0]
            in_time = [
                time - job.arrival_ms <= job.slo.token_due_ms(index) + SLACK
                for index, time in enumerate(times)
            ]
            prompts += job.prompt_tokens * in_time[0]
            outputs += sum(in_time)
            requests += all(in_time)
        elif (
            max(ends[job.job_id, place] for place in range(len(job.calls))) - job.arrival_ms
            <= job.slo.e2e_ms + SLACK
        ):
            prompts += job.prompt_tokens
            outputs += job.output_tokens
            requests += 1
    return prompts + outputs, prompts + 8 * outputs, requests


def edf(job: Job, _place: int, _now: float) -> float:
    return job.arrival_ms + (job.slo.ttft_ms or job.slo.e2e_ms)


def fcfs(job: Job, _place: int, _now: float) -> float:
    return job.arrival_ms


def sjf(job: Job, place: int, _now: float) -> float:
    return job.calls[place].prompt_tokens + job.calls[place].output_tokens


def edf_shed(job: Job, place: int, now: float) -> float:
    """Least due time first; what is past goes last."""
    due = edf(job, place, now)
    return due if now <= due else 1e12 + due


def test_the_exact_solver_agrees_with_exhaustive_search() -> None:
    engine = SlotEngine(STEP_MS, 2, 8)
    rng = np.random.default_rng(3)
    for _ in range(8):
        jobs = [
            deadline(
                n,
                int(rng.integers(0, 4)),
                int(rng.integers(1, 17)),
                int(rng.integers(1, 5)),
                int(rng.integers(2, 8)),
            )
            if rng.random() < 0.6
            else stream(n, int(rng.integers(0, 4)), 4, int(rng.integers(2, 5)), int(rng.integers(1, 4)), 1.5)
            for n in range(4)
        ]
        assert clairvoyant(jobs, engine) == exhaustive(jobs, engine)


def exhaustive(jobs: Sequence[Job], engine: SlotEngine) -> Optimum:
    """Every choice of who runs in every step, remembered by progress."""
    units = [engine.units(job.prompt_tokens, job.output_tokens) for job in jobs]
    prefill = [engine.prefill_steps(job.prompt_tokens) for job in jobs]

    def gain(number: int, unit: int, now_ms: float) -> tuple[float, float]:
        """Prompt and output tokens that count when unit `unit` of a job ends now."""
        job = jobs[number]
        index = unit - prefill[number]
        if job.slo.slo_class is SloClass.LATENCY:
            in_time = index >= 0 and now_ms <= job.arrival_ms + job.slo.token_due_ms(index) + SLACK
            return (job.prompt_tokens * (index == 0) * in_time, float(in_time))
        if unit == units[number] - 1 and now_ms <= job.arrival_ms + job.slo.e2e_ms + SLACK:
            return float(job.prompt_tokens), float(job.output_tokens)
        return 0.0, 0.0

    def best(prompt: float, output: float, request: float) -> float:
        @cache
        def search(step: int, progress: tuple[int, ...], late: tuple[bool, ...]) -> float:
            live = [
                n
                for n, unit in enumerate(progress)
                if unit < units[n] and jobs[n].arrival_ms <= step * STEP_MS
            ]
            if step >= 24:
                return 0.0
            found = 0.0
            for size in range(min(len(live), engine.max_batch) + 1):
                if live and size < min(len(live), engine.max_batch):
                    continue  # an idle slot gains nothing
                for chosen in combinations(live, size):
                    after, missed, value = list(progress), list(late), 0.0
                    for n in chosen:
                        now_ms = (step + 1) * STEP_MS
                        prompts, outputs = gain(n, progress[n], now_ms)
                        value += prompt * prompts + output * outputs
                        missed[n] = missed[n] or (
                            progress[n] >= prefill[n] - 1 and stream_missed(n, progress[n], now_ms)
                        )
                        after[n] += 1
                        if after[n] == units[n] and not missed[n]:
                            value += request * (jobs[n].slo.slo_class is SloClass.LATENCY or outputs > 0)
                    found = max(found, value + search(step + 1, tuple(after), tuple(missed)))
            return found

        def stream_missed(number: int, unit: int, now_ms: float) -> bool:
            streams = jobs[number].slo.slo_class is SloClass.LATENCY and unit >= prefill[number]
            return streams and not gain(number, unit, now_ms)[1]

        return search(0, (0,) * len(jobs), (False,) * len(jobs))

    prefill = [steps - 1 for steps in prefill]
    return Optimum(best(1, 1, 0), best(1, 8, 0), best(0, 0, 1))


@pytest.mark.parametrize("seed", range(4))
def test_fluid_bounds_the_optimum_and_the_optimum_bounds_schedules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = SlotEngine(STEP_MS, int(rng.integers(1, 4)), 8)
    jobs = random_jobs(rng, 7)
    group = slot_group(engine)
    optimum = clairvoyant(jobs, engine)
    bound = fluid_bound(workload(jobs), [group])
    best = (optimum.tokens_1_1, optimum.tokens_1_8, optimum.requests)
    above = (bound.tokens_1_1, bound.tokens_1_8, bound.requests)
    assert all(high >= low - SLACK for high, low in zip(above, best, strict=True)), (above, best)
    times = StepTimes(STEP_MS, 0.0, 0.0, 0.0, 0.0)
    ranks = rng.permutation(len(jobs))
    for priority in (edf, fcfs, sjf, edf_shed, lambda job, _place, _now: float(ranks[job.job_id])):
        found = run(jobs, times, engine.max_batch, engine.prefill_chunk_tokens, priority)
        assert all(high >= low - SLACK for high, low in zip(best, found, strict=True)), (best, found)


@pytest.mark.parametrize(("seed", "profile"), [(1, "a100-80-8b"), (2, "l4-8b"), (3, "cpu-smollm2")])
def test_no_schedule_with_true_step_times_beats_the_fluid_bound(seed: int, profile: str) -> None:
    slow = {"l4-8b": 0.3, "cpu-smollm2": 0.2}.get(profile, 1.0)
    jobs = make_workload(
        "jitserve-mix", rate_per_s=4 * slow, duration_s=3 / slow, seed=seed, slo_scale=0.3 / slow**0.7
    ).jobs
    group = EngineGroup(load_profile(profile), 1, 8, 128)
    bound = fluid_bound(workload(jobs), [group], max_buckets=12)
    times = step_times(group.profile)
    shares = []
    for priority in (edf_shed, sjf):
        found = run(jobs, times, 8, 128, priority)
        above = (bound.tokens_1_1, bound.tokens_1_8, bound.requests)
        assert all(high >= low - SLACK for high, low in zip(above, found, strict=True)), (above, found)
        shares.append(found[2] / max(bound.requests, 1))
    assert max(shares) > 0.3, "a bound so far off says nothing"


def test_the_bound_is_the_whole_trace_when_nothing_is_scarce_and_follows_capacity_when_it_is() -> None:
    trace = make_workload("jitserve-mix", rate_per_s=0.2, duration_s=100, seed=1)
    group = EngineGroup(load_profile("h200-8b"), 1, 64, 512)
    idle = fluid_bound(trace, [group])
    assert idle.requests == idle.reachable == idle.jobs == len(trace.jobs)
    assert idle.tokens_1_1 == pytest.approx(sum(job.prompt_tokens + job.output_tokens for job in trace.jobs))
    busy = make_workload("jitserve-mix", rate_per_s=8, duration_s=6, seed=1, mix={"deadline": 1})
    small = EngineGroup(load_profile("a100-80-8b"), 1, 4, 128)
    one = fluid_bound(busy, [small])
    two = fluid_bound(busy, [replace(small, count=2)])
    mixed = fluid_bound(busy, [small, EngineGroup(load_profile("h100-8b"), 1, 4, 128)])
    assert one.requests < 0.9 * one.reachable
    assert one.tokens_1_8 < two.tokens_1_8 <= mixed.tokens_1_8 <= 2.5 * one.tokens_1_8
    # Four streams that decode at best at every step of the weights: no more tokens than that.
    step_ms = capacity_of(small).least_step_ms
    span_ms = max(job.arrival_ms + job.slo.e2e_ms for job in busy.jobs)
    outputs = (one.tokens_1_8 - one.tokens_1_1) / 7
    assert outputs <= 4 * (span_ms + one.bucket_ms) / step_ms * 1.05
    half = fluid_bound(busy, [small], begin_ms=0, end_ms=3_000)
    assert half.jobs < one.jobs
    assert half.requests <= one.requests
    cut = fluid_bound(busy, [small], stop_ms=6_000)
    assert cut.requests < one.requests


def test_a_job_out_of_reach_is_not_in_the_bound() -> None:
    profile = load_profile("a100-80-8b")
    step_ms = capacity_of(EngineGroup(profile, 1, 8, 512)).least_step_ms
    slo = Slo(SloClass.DEADLINE, e2e_ms=step_ms * 100)
    jobs = [Job(n, "a", "t", slo, 0.0, (Call(0, (), 10, out, 0.0),)) for n, out in enumerate((50, 99, 150))]
    bound = fluid_bound(workload(jobs), [EngineGroup(profile, 4, 8, 512)])
    assert (bound.jobs, bound.reachable, bound.requests) == (3, 2, 2)
    shared = Job(9, "a", "t", Slo(SloClass.DEADLINE, e2e_ms=200.0), 0.0, (Call(0, (), 9000, 2, 0.0, 8990),))
    assert fluid_bound(workload([shared]), [EngineGroup(profile, 1, 8, 512)]).reachable == 1
    assert (
        fluid_bound(workload([shared]), [EngineGroup(profile, 1, 8, 512)], prefix_reuse=False).reachable == 0
    )
    effort = Job(1, "a", "t", Slo(SloClass.BEST_EFFORT), 0.0, (Call(0, (), 10, 10, 0.0),))
    assert fluid_bound(workload([effort]), [EngineGroup(profile, 1, 8, 512)]).requests == 0


def test_a_stream_whose_start_is_late_may_still_catch_up() -> None:
    """Its first hundred tokens are out of reach on an idle engine, the last forty are not."""
    engine = SlotEngine(STEP_MS, 1, 8)
    jobs = [stream(1, 0, 480, 140, 10, 1.5)]
    optimum = clairvoyant(jobs, engine)
    found = run(jobs, StepTimes(STEP_MS, 0.0, 0.0, 0.0, 0.0), 1, 8, fcfs)
    bound = fluid_bound(workload(jobs), [slot_group(engine)])
    assert 35 < found[0] <= optimum.tokens_1_1 <= bound.tokens_1_1 + SLACK < 45
    assert found[2] == optimum.requests == bound.requests == 0


def test_engines_that_are_alike_are_one_group() -> None:
    a100, h100 = load_profile("a100-80-8b"), load_profile("h100-8b")
    groups = grouped([(a100, 32, 128), (h100, 32, 128), (a100, 32, 128), (a100, 16, 128)])
    assert [(g.profile.name, g.count, g.max_batch) for g in groups] == [
        ("a100-80-8b", 2, 32), ("h100-8b", 1, 32), ("a100-80-8b", 1, 16),
    ]  # fmt: skip


def test_without_scipy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program()
    rows, variables = program.add_rows([1.0]), program.add_variables(1)
    program.put(rows, variables, 1.0)
    assert maximum(program, np.ones(1)) == pytest.approx(1.0)
    for module in ("scipy", "scipy.optimize", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingSolverError, match="make setup-train"):
        maximum(program, np.ones(1))
    with pytest.raises(MissingSolverError, match="make setup-train"):
        clairvoyant([deadline(1, 0, 4, 2, 9)], SlotEngine(STEP_MS, 1, 8))
    with pytest.raises(ValueError, match="tiny"):
        clairvoyant([deadline(n, 0, 4, 90, 9000) for n in range(3)], SlotEngine(STEP_MS, 1, 8))
