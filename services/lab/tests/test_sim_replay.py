"""Replays: the scored window, seeds in processes, the knee, and simulations held against what was measured."""

import json
import math

import numpy as np
import pytest

from paceline_core.engine_model import EngineModel
from paceline_core.slo import Slo, SloClass
from paceline_lab.live.objectives import Objectives
from paceline_lab.live.report import LiveReport
from paceline_lab.live.score import CallRecord, JobRecord
from paceline_lab.live.workload import WorkloadSpec as LiveWorkload
from paceline_lab.sim.cell import Cell, Periods, WorkloadSpec, batch_policy, run_cell
from paceline_lab.sim.engine_spec import parse_engines
from paceline_lab.sim.knee import find_knee
from paceline_lab.sim.replay import ReplayPlan, points_of, run_replay
from paceline_lab.sim.replay_plot import save_plots
from paceline_lab.sim.replay_report import COLUMNS, document, table_rows
from paceline_lab.sim.validation import LiveEngine, errors, replay_on, seen, validate_live
from paceline_lab.workloads.trace import Call, Job, Workload

ENGINES = parse_engines("a100-80-8b")
WORKLOAD = WorkloadSpec()


def plan(**more):
    base = {
        "workload": WORKLOAD,
        "engines": ENGINES,
        "policies": ("sarathi", "edf"),
        "batch_limits": (8,),
        "rates": (0.5,),
        "seeds": (1, 2),
        "warmup_s": 2.0,
        "window_s": 12.0,
        "grace_s": 10.0,
    }
    return ReplayPlan(**{**base, **more})


def test_a_replay_is_scored_compared_and_drawn(tmp_path):
    told = []
    result = run_replay(plan(), on_row=lambda row, done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first, second = points_of(result)
    assert (first.policy, second.policy) == ("sarathi", "edf")
    gaps = [
        edf["request_goodput"] - sarathi["request_goodput"]
        for sarathi, edf in zip(first.rows, second.rows, strict=True)
    ]
    assert second.against_first["request_goodput"].mean == pytest.approx(np.mean(gaps))
    for row in result.rows:
        assert row["request_goodput"] == pytest.approx(row["attained"] / 12.0, abs=1e-5)
        assert row["jobs"] == sum(kind["jobs"] for kind in row["classes"].values())
    assert len(table_rows(result)[0]) == len(COLUMNS)
    assert json.loads(json.dumps(document(result), allow_nan=False))["kind"].endswith("(simulated)")
    assert all(path.stat().st_size > 1_000 for path in save_plots(result, tmp_path))


def test_the_window_counts_arrivals_and_the_stop_is_a_miss():
    whole = Cell("sarathi", 1, 0.5, math.nan, WORKLOAD, ENGINES, Periods(0.0, 10.0, 200.0))
    cut = Cell("sarathi", 1, 0.5, math.nan, WORKLOAD, ENGINES, Periods(0.0, 210.0, 1e-3))
    one, all_of_them = run_cell(whole), run_cell(cut)
    assert 0 < one["jobs"] < all_of_them["jobs"]
    assert one["simulated_s"] == pytest.approx(all_of_them["simulated_s"], rel=0.01)
    unfinished = [kind["unfinished"] for kind in all_of_them["classes"].values()]
    assert sum(unfinished) > 0 == sum(kind["unfinished"] for kind in one["classes"].values())


def test_the_knee_lies_where_sarathi_begins_to_miss():
    trials = []
    small = tuple(engine.batch(2) for engine in ENGINES)
    brief = WorkloadSpec(slo_scale=0.5, mix=(("deadline", 1.0),))
    knee = find_knee(brief, small, on_trial=trials.append, tolerance=0.6)
    assert 0.2 * knee.capacity_per_s <= knee.rate_per_s < 1.25 * knee.capacity_per_s
    for row in trials:
        kept = row["attainment"] >= 0.9 * knee.low_attainment
        assert kept or row["rate_per_s"] > knee.rate_per_s


def test_several_engines_share_the_calls():
    cell = Cell(
        "sarathi", 1, 2.0, math.nan, WORKLOAD, parse_engines("a100-80-8b:2"), Periods(1.0, 10.0, 20.0),
        placement="least-request",
    )  # fmt: skip
    two = run_cell(cell)
    one = run_cell(Cell("sarathi", 1, 2.0, math.nan, WORKLOAD, ENGINES, Periods(1.0, 10.0, 20.0)))
    assert two["output_tokens_per_s"] > one["output_tokens_per_s"]
    with pytest.raises(ValueError, match="placement"):
        run_cell(Cell("sarathi", 1, 2.0, math.nan, WORKLOAD, cell.engines, Periods(1.0, 10.0, 20.0)))


def test_engines_and_policies_are_read_as_written(tmp_path):
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "engines:\n  - {profile: a100-80-8b, count: 2}\n  - {profile: l4-8b, speed_factor: 2.0}\n"
    )
    fleet = parse_engines(str(file))
    assert [engine.profile.name for engine in fleet] == ["a100-80-8b", "a100-80-8b", "l4-8b"]
    assert fleet[2].profile.a_ms == 2 * parse_engines("l4-8b")[0].profile.a_ms
    file.write_text("engines:\n  - {profile: a100-80-8b, sped: 2}\n")
    for wrong in (str(file), "a100-80-8b:x", "no-such-gpu"):
        with pytest.raises(ValueError):
            parse_engines(wrong)
    assert batch_policy("sarathi:token_budget=2048").plan  # parameters reach the policy
    with pytest.raises(ValueError, match="no parameter"):
        batch_policy("sarathi:tokens=1")


def test_errors_are_those_of_deciles_medians_and_shares():
    slo = Slo(SloClass.LATENCY, ttft_ms=100.0, tbt_ms=10.0)
    measured = [seen(50.0 + n, 50.0 + n + 90.0, 10, slo) for n in range(100)]
    slower = [seen(1.1 * s.ttft_ms, 1.1 * s.ttft_ms + 99.0, 10, slo) for s in measured]
    found = errors(measured, slower)
    assert found["ttft_error"] == pytest.approx(0.1)
    assert found["tpot_error"] == pytest.approx(0.1)
    assert found["attainment_difference"] < 0
    assert errors(measured, measured)["within_targets"]


def test_a_live_run_that_went_as_simulated_is_found_to_be_exact():
    engine = LiveEngine(EngineModel(8.0, 3.0, 0.01, 7.0, 20.0, 2.0, 0.002), 4, 8, 16_384, 64, 2_048)
    chat, task = (
        Slo(SloClass.LATENCY, ttft_ms=2_000.0, tbt_ms=200.0),
        Slo(SloClass.TASK, e2e_ms=60_000.0, task_id="t"),
    )
    jobs = [Job(n, "a", "t0", chat, 400.0 * n, (Call(0, (), 90 + n, 40, 0.0),)) for n in range(20)]
    stages = (Call(0, (), 80, 30, 0.0), Call(1, (0,), 60, 20, 5.0), Call(1, (0,), 70, 25, 5.0))
    jobs.append(Job(20, "a", "t0", task, 8_000.0, stages))
    truth = replay_on(Workload.of("live", 1, jobs, 8_001.0, 2.0), [engine.spec], "sarathi")
    records = []
    for sim in truth.jobs:
        calls = []
        for _, call in sorted(sim.calls.items()):
            outcome, sent = call.outcome, call.released_ms - sim.job.arrival_ms
            times = np.linspace(outcome.first_token_ms, outcome.last_token_ms, outcome.tokens) + sent
            calls.append(
                CallRecord(
                    "r", call.call.prompt_tokens, times, sent, float(times[-1]), "stop", stage=call.call.stage
                )
            )
        records.append(JobRecord(sim.job.job_id, sim.job.arrival_ms / 1e3, sim.job.slo, tuple(calls), True))
    report = LiveReport(
        LiveWorkload(2.0, 8.0, 1),
        0.0,
        1.0,
        "",
        "",
        "",
        (),
        None,
        Objectives(1, 1, 1, 1),
        tuple(records),
        (),
        {},
    )
    found = validate_live(report, [engine], "sarathi")
    assert (found["jobs"], found["calls"]) == (21, 23)
    assert found["ttft_error"] < 1e-3
    assert found["tpot_error"] < 1e-3
    assert found["attainment_difference"] == 0
