"""The routing report: placement policies on mixed fleets, what is missing, and whether P(meet) comes true."""

import numpy as np

from paceline_core.placement.registry import make_policy
from paceline_lab.report.calibration import calibration_error, calibration_section
from paceline_lab.report.experiment import Compares, Experiment, Variant
from paceline_lab.report.routing import introduction, write_report
from paceline_lab.report.routing_experiments import BLIND, experiments
from paceline_lab.report.running import Cache, Runner, Scale, saturation_per_s
from paceline_lab.sim.cell import WorkloadSpec, placement_policy
from paceline_lab.sim.engine_spec import EngineSpec, parse_engines
from paceline_lab.sim.moves import Moves


def made(policy, seed, goodput, bins=(), moves=0):
    names = ("token_goodput_1_1", "output_tokens", "wasted_tokens", "output_tokens_per_s")
    return {
        "policy": "sarathi", "placement": policy, "seed": seed, "request_goodput": goodput, "attainment": 0.5,
        "share_of_bound": {"request_goodput": 0.5}, "moves": {"made": moves}, "calls": 100, "p_meet_bins": bins,
        "classes": {}, **dict.fromkeys(names, 100 * goodput),
    }  # fmt: skip


def test_every_policy_of_the_report_exists() -> None:
    for experiment in experiments():
        assert experiment.compares is Compares.PLACEMENT
        for policy in experiment.policies:
            name, _, _ = policy.partition(":")
            assert placement_policy(policy).name == make_policy(name).name


def test_gains_over_the_best_blind_rule_and_over_oneself_are_said(tmp_path) -> None:
    variants = (Variant("1x off"), Variant("1x on", moves=Moves.REFRESHED, against="1x off"))
    policies = (*BLIND, "goodserve", "margin")
    experiment = Experiment("load", "Load", "", policies, variants, compares=Compares.PLACEMENT)
    rows = {
        label: [
            made(policy, seed, 1.0 + 0.1 * place + 0.01 * seed * place + more, moves=3)
            for place, policy in enumerate(policies)
            for seed in (1, 2, 3)
        ]
        for label, more in (("1x off", 0.0), ("1x on", 0.5))
    }
    report = tmp_path / "routing.md"
    write_report(report, [experiment], {"load": rows}, introduction(Scale(most_seeds=3), [experiment]), "")
    text = report.read_text()
    assert "| Load, 1x off | llumnix (of 7) | +7.0 ±" in text
    assert "`margin`, 1x on against 1x off: requests +25.5 ±0.0 % (significant)" in text
    assert "Not run yet: motivation, moves" in text
    assert "no significant loss" in text
    assert "| 3.0 |" in text, "moves a hundred calls"


def test_what_was_not_run_is_left_out_and_counted(tmp_path) -> None:
    workload = WorkloadSpec("motivation")
    variant = Variant("few", fleet=("h100-8b", "a40-8b"), rate_per_s=2.0, window_s=4.0, workload=workload)
    experiment = Experiment(
        "x", "X", "", ("least-request", "margin"), (variant,), seeds=1, compares=Compares.PLACEMENT
    )
    scale = Scale(policies=("margin",))
    (fewer,) = scale.chosen([experiment])
    assert fewer.policies == ("margin",)
    Runner(Cache(tmp_path, "1"), scale, 1, lambda _: None).rows([fewer])
    found = Runner(Cache(tmp_path, "1"), Scale(), 1, lambda _: None, finished=True).rows([experiment])
    (row,) = found["x"]["few"]
    assert row["placement"] == "margin"
    assert row["calls"] == 8
    assert row["share_of_bound"]["request_goodput"] <= 1
    report = tmp_path / "routing.md"
    write_report(report, [experiment], found, introduction(Scale(), [experiment]), "")
    text = report.read_text()
    assert "1 of 2 runs of this table are not made yet" in text
    assert "least-request |" not in text
    assert "Calibration of P(meet)" in text


def test_saturation_of_a_fleet_is_that_of_its_engines() -> None:
    workload = WorkloadSpec("goodserve-mix")
    fast, slow = parse_engines("h100-8b,a40-8b")
    both = saturation_per_s(workload, (fast, slow))
    assert np.isclose(both, saturation_per_s(workload, (fast,)) + saturation_per_s(workload, (slow,)))
    faster = EngineSpec(fast.profile.perturbed(1.2, 1.2))
    assert saturation_per_s(workload, (faster,)) > saturation_per_s(workload, (fast,))


def test_calibration_is_the_mean_distance_of_what_was_said_and_what_came() -> None:
    bins = [[0.0, 0.0, 0.0]] * 8 + [[10.0, 8.5, 7.0], [30.0, 29.0, 30.0]]
    assert np.isclose(calibration_error(np.array(bins)), (1.5 + 1.0) / 40)
    experiment = Experiment("x", "X", "", ("margin",), (Variant("here"),), compares=Compares.PLACEMENT)
    section = calibration_section("margin", [experiment], {"x": {"here": [made("margin", 1, 1.0, bins)]}})
    assert "here 0.062 (missed)" in section
    assert "| 0.85 | 10 | 0.70 |" in section
    assert calibration_section("margin", [experiment], {"x": {"here": [made("margin", 1, 1.0)]}}) == ""
