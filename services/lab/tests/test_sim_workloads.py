"""Workloads of the simulator: lengths as published, arrivals as stated, graphs that hold together."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from paceline_core.slo import SloClass
from paceline_lab.workloads import published
from paceline_lab.workloads.arrivals import counted_ms, replayed_rows, warped_ms
from paceline_lab.workloads.jitserve import chat_graphs, research_graphs
from paceline_lab.workloads.lengths import QuantileCurve, coupled_levels
from paceline_lab.workloads.published import Published
from paceline_lab.workloads.registry import UnknownWorkloadError, make_workload, workload_names
from paceline_lab.workloads.trace import Call, Job, Workload

SAMPLES = 10_000
NEED_DATA = ("azure-conv", "azure-code", "mooncake", "jitserve-deepresearch", "claude-code")


def assert_as_published(tokens: object, statistics: Published, within: float = 0.10) -> None:
    sample = np.asarray(tokens, float)
    assert len(sample) >= SAMPLES
    found = (sample.mean(), sample.std(), *np.quantile(sample, [0.5, 0.95]))
    wanted = (statistics.mean, statistics.std, statistics.p50, statistics.p95)
    ratios = [a / b for a, b in zip(found, wanted, strict=True)]
    assert all(abs(ratio - 1) <= within for ratio in ratios), ratios


@pytest.mark.parametrize("name", [n for n, v in vars(published).items() if isinstance(v, Published)])
def test_a_published_distribution_has_its_statistics(name: str) -> None:
    statistics: Published = getattr(published, name)
    assert_as_published(statistics.curve.sample(np.random.default_rng(5), SAMPLES), statistics)
    assert statistics.curve.mean == pytest.approx(statistics.mean, rel=0.1)
    assert statistics.curve.std == pytest.approx(statistics.std, rel=0.1)


def test_research_tasks_have_the_published_totals_and_the_published_calls() -> None:
    graphs = research_graphs(np.random.default_rng(11), SAMPLES)
    assert_as_published([sum(c.prompt_tokens for c in g) for g in graphs], published.RESEARCH_TASK_PROMPT)
    assert_as_published([sum(c.output_tokens for c in g) for g in graphs], published.RESEARCH_TASK_OUTPUT)
    assert_as_published([c.prompt_tokens for g in graphs for c in g], published.RESEARCH_PROMPT)
    assert_as_published([c.output_tokens for g in graphs for c in g], published.RESEARCH_OUTPUT)
    calls = np.mean([len(g) for g in graphs])
    assert 12223 / 1911 * 0.97 < calls < 3541 / 534 * 1.03
    assert {1 + g[-1].stage for g in graphs} == {4, 6}


def test_chat_tasks_have_the_published_totals_and_chat_calls() -> None:
    graphs = chat_graphs(np.random.default_rng(12), SAMPLES)
    assert_as_published([sum(c.prompt_tokens for c in g) for g in graphs], published.CHAT_TASK_PROMPT)
    assert_as_published([sum(c.output_tokens for c in g) for g in graphs], published.CHAT_TASK_OUTPUT)
    assert_as_published([c.output_tokens for g in graphs for c in g], published.CHAT_OUTPUT)
    assert_as_published([c.prompt_tokens for g in graphs for c in g], published.CHAT_PROMPT)


def test_the_jitserve_mix_is_one_to_one_to_one_with_the_objectives_of_paper_and_artifact() -> None:
    paper = make_workload("jitserve-mix", rate_per_s=20, duration_s=150, seed=3)
    classes = Counter(job.slo.slo_class for job in paper.jobs)
    for kind in (SloClass.LATENCY, SloClass.DEADLINE, SloClass.TASK):
        assert classes[kind] == pytest.approx(len(paper.jobs) / 3, rel=0.07)
    singles = make_workload(
        "jitserve-mix", rate_per_s=20, duration_s=1040, seed=3, mix={"latency": 1, "deadline": 1}
    )
    by_app = {app: [j.calls[0] for j in singles.jobs if j.app == app] for app in ("chat", "research")}
    assert_as_published([c.prompt_tokens for c in by_app["chat"]], published.CHAT_PROMPT)
    assert_as_published([c.output_tokens for c in by_app["chat"]], published.CHAT_OUTPUT)
    assert_as_published([c.prompt_tokens for c in by_app["research"]], published.RESEARCH_PROMPT)
    assert_as_published([c.output_tokens for c in by_app["research"]], published.RESEARCH_OUTPUT)
    for job in paper.jobs:
        if job.slo.slo_class is SloClass.LATENCY:
            assert (job.slo.ttft_ms, job.slo.tbt_ms) == (2000, 100)
        else:
            assert job.slo.e2e_ms == 20_000 * job.stages
    loose = make_workload("jitserve-mix-artifact", rate_per_s=5, duration_s=60, seed=3, slo_scale=2)
    times = {(j.slo.ttft_ms, j.slo.tbt_ms) for j in loose.jobs if j.slo.slo_class is SloClass.LATENCY}
    assert times == {(1600, 160)}
    only = make_workload("jitserve-mix", rate_per_s=5, duration_s=60, seed=3, mix={"task": 1})
    assert {job.slo.slo_class for job in only.jobs} == {SloClass.TASK}
    with pytest.raises(ValueError, match="latency, deadline, task"):
        make_workload("jitserve-mix", rate_per_s=5, duration_s=60, seed=3, mix={"chat": 1})


@pytest.mark.parametrize("name", [name for name in workload_names() if name not in NEED_DATA])
def test_a_workload_is_a_function_of_its_arguments(name: str) -> None:
    one, same, other = (make_workload(name, rate_per_s=8, duration_s=60, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.jobs != other.jobs
    arrivals = [job.arrival_ms for job in one.jobs]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] < one.duration_ms == 60_000
    assert len({job.job_id for job in one.jobs}) == len(one.jobs)
    tasks = [job.slo.task_id for job in one.jobs if job.slo.slo_class is SloClass.TASK]
    assert all(tasks)
    assert len(set(tasks)) == len(tasks)
    tight = make_workload(name, rate_per_s=8, duration_s=60, seed=1, slo_scale=0.5)
    for job, tighter in zip(one.jobs, tight.jobs, strict=True):
        assert job.calls == tighter.calls
        assert tighter.slo.ttft_ms == pytest.approx(job.slo.ttft_ms / 2)
        # What a task's tools are expected to take is no one's to halve.
        assert tighter.slo.e2e_ms >= job.slo.e2e_ms / 2 * (1 - 1e-9)


def test_the_motivation_test_is_that_of_the_paper() -> None:
    workload = make_workload("motivation", rate_per_s=10, duration_s=60, seed=1)
    assert len(workload.jobs) == 600
    outputs = [job.output_tokens for job in workload.jobs]
    assert min(outputs) >= 100
    assert max(outputs) <= 500
    assert np.mean(outputs) == pytest.approx(300, rel=0.05)
    assert {(job.prompt_tokens, job.slo.e2e_ms) for job in workload.jobs} == {(100, 6000)}


def test_goodserve_targets_do_not_tell_the_length() -> None:
    workload = make_workload("goodserve-mix", rate_per_s=40, duration_s=60, seed=1)
    for app in ("code", "sql"):
        jobs = [job for job in workload.jobs if job.app == app]
        targets, outputs = [j.slo.e2e_ms for j in jobs], [j.output_tokens for j in jobs]
        assert abs(np.corrcoef(targets, outputs)[0, 1]) < 0.12
        assert max(targets) / min(targets) > 3


def test_production_has_large_and_small_tenants_bursts_and_a_day() -> None:
    workload = make_workload("production", rate_per_s=20, duration_s=700, seed=4)
    jobs = workload.jobs
    assert len(jobs) == pytest.approx(20 * 700, rel=0.3)
    tenants = sorted(Counter(job.tenant for job in jobs).values(), reverse=True)
    assert len(tenants) >= 30
    assert tenants[0] > 20 * tenants[len(tenants) // 2] / 10
    assert sum(tenants[:4]) > 0.35 * len(jobs)
    assert {job.slo.slo_class for job in jobs} == set(SloClass)
    largest = Counter(job.tenant for job in jobs).most_common(12)
    cvs = []
    for tenant, _ in largest:
        gaps = np.diff([job.arrival_ms for job in jobs if job.tenant == tenant])
        cvs.append(gaps.std() / gaps.mean())
    assert max(cvs) > 1.8
    agents = [job for job in jobs if job.app == "agent"]
    for call, before in zip(agents[0].calls[1:], agents[0].calls, strict=False):
        assert call.parents == (before.stage,)
        assert call.shared_prefix_tokens == before.prompt_tokens + before.output_tokens
        assert call.tool_ms > 0
    assert max(job.prompt_tokens for job in jobs if len(job.calls) == 1) > 30_000


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gaps_vary_as_asked(cv: float) -> None:
    workload = make_workload("motivation", rate_per_s=100, duration_s=200, seed=1, cv=cv)
    gaps = np.diff([job.arrival_ms for job in workload.jobs])
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)
    mixed = make_workload("jitserve-mix", rate_per_s=20, duration_s=400, seed=1, cv=cv, mix={"latency": 1})
    gaps = np.diff([job.arrival_ms for job in mixed.jobs])
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)


def test_a_daily_rhythm_keeps_the_number_and_moves_the_rate() -> None:
    times = counted_ms(40_000, 100, 1.0, np.random.default_rng(1))
    warped = warped_ms(times, 100, 0.5)
    assert np.all(np.diff(warped) >= 0)
    counts = np.histogram(warped, bins=4, range=(0, 100_000))[0] / 10_000
    assert counts == pytest.approx([1 + 1 / np.pi, 1 + 1 / np.pi, 1 - 1 / np.pi, 1 - 1 / np.pi], abs=0.03)


def test_replay_keeps_the_order_at_another_rate_and_starts_over() -> None:
    stamps = np.array([0.0, 1.0, 1.5, 4.0])
    times, rows = replayed_rows(stamps, rate_per_s=8, duration_s=2, cv=1.0, rng=np.random.default_rng(2))
    assert len(times) == pytest.approx(16, abs=1)
    assert np.all(np.diff(times) > 0)
    assert np.all(np.diff(rows) % 4 == 1)
    assert times[0] >= 0
    assert times[-1] < 2000


def test_a_trace_is_asked_for_by_name() -> None:
    for name in NEED_DATA:
        with pytest.raises(ValueError, match=r"fetch .* --data"):
            make_workload(name, rate_per_s=1, duration_s=10, seed=1)
        with pytest.raises(ValueError, match=r"fetch .* --data"):
            make_workload(name, rate_per_s=1, duration_s=10, seed=1, data=Path("/nowhere"))
    with pytest.raises(UnknownWorkloadError, match="jitserve-mix"):
        make_workload("abacus", rate_per_s=1, duration_s=10, seed=1)


def test_public_traces_are_read(tmp_path: Path) -> None:
    csv = "arrival_s,input_tokens,output_tokens\n0,100,10\n0.5,200,20\n2,300,0\n"
    (tmp_path / "azure_2023_code.csv.gz").write_bytes(gzip.compress(csv.encode()))
    code = make_workload("azure-code", rate_per_s=10, duration_s=30, seed=1, data=tmp_path)
    assert {(j.prompt_tokens, j.output_tokens) for j in code.jobs} == {(100, 10), (200, 20), (300, 1)}
    assert len(code.jobs) == pytest.approx(300, abs=2)
    rows = [(0, 600, 5, [1, 2]), (0, 1100, 5, [1, 2, 3]), (3000, 1400, 5, [1, 7, 8])]
    lines = [
        json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": h})
        for t, i, o, h in rows
    ]
    (tmp_path / "mooncake").mkdir()
    trace = tmp_path / "mooncake" / "conversation_trace.jsonl.gz"
    trace.write_bytes(gzip.compress("\n".join(lines).encode()))
    chats = make_workload("mooncake", rate_per_s=1, duration_s=60, seed=1, data=tmp_path)
    assert {(j.prompt_tokens, j.calls[0].shared_prefix_tokens) for j in chats.jobs} == {
        (600, 0), (1100, 1024), (1400, 512),
    }  # fmt: skip
    agents = make_workload("goodserve-mix", rate_per_s=5, duration_s=60, seed=1, data=tmp_path)
    assert len(agents.jobs) == pytest.approx(300, abs=3)
    dag = {"request_id": 1, "stages": [[[9, 2]], [[5, 8], [6, 7]], [[30, 1]]]}
    dag["stages"] = [[{"input_tokens": i, "output_tokens": o} for i, o in s] for s in dag["stages"]]  # type: ignore[attr-defined]
    trace = tmp_path / "deepresearch_training_subset.jsonl.gz"
    trace.write_bytes(gzip.compress(json.dumps(dag).encode()))
    tasks = make_workload("jitserve-deepresearch", rate_per_s=1, duration_s=20, seed=1, data=tmp_path)
    calls = tasks.jobs[0].calls
    assert [(c.stage, c.parents) for c in calls] == [(0, ()), (1, (0,)), (1, (0,)), (2, (1, 2))]
    assert tasks.jobs[0].slo.e2e_ms == 60_000


def test_a_job_that_makes_no_sense_is_refused() -> None:
    sound = make_workload("jitserve-mix", rate_per_s=5, duration_s=20, seed=1, mix={"task": 1}).jobs[0]
    chat = make_workload("jitserve-mix", rate_per_s=5, duration_s=20, seed=1, mix={"latency": 1}).jobs[0]
    one = Call(0, (), 10, 10, 0.0)
    for slo, calls in (
        (sound.slo, ()),
        (chat.slo, (one, one)),
        (sound.slo, (Call(0, (0,), 10, 10, 0.0),)),
        (sound.slo, (Call(0, (), 10, 0, 0.0),)),
        (sound.slo, (Call(0, (), 10, 1, -1.0),)),
        (sound.slo, (Call(0, (), 10, 1, 0.0, shared_prefix_tokens=11),)),
    ):
        with pytest.raises(ValueError, match="job 1 of app"):
            Job(1, "app", "t", slo, 0.0, calls)
    later = Job(2, "app", "t", chat.slo, 5.0, (one,))
    assert Workload.of("w", 0, [later, chat], 10.0, 1.0).jobs[-1].arrival_ms >= 5.0


def test_a_quantile_curve_knows_its_moments() -> None:
    curve = QuantileCurve((0, 0.5, 1), (1, 10, 10))
    big = curve.at(np.random.default_rng(1).random(400_000))
    assert curve.mean == pytest.approx(big.mean(), rel=0.01)
    assert curve.std == pytest.approx(big.std(), rel=0.01)
    one, two = coupled_levels(np.random.default_rng(1), 20_000, 0.8)
    assert np.quantile(two, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)
    assert 0.7 < np.corrcoef(one, two)[0, 1] < 0.85
    with pytest.raises(ValueError, match="levels"):
        QuantileCurve((0, 1.5), (1, 2))
    with pytest.raises(ValueError, match="quantile"):
        QuantileCurve((0, 1), (2, 1))
