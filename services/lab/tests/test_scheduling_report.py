"""The scheduling report: runs are made once, and losses are said."""

from dataclasses import replace

import pytest

from paceline_lab.report.experiment import Experiment, Variant
from paceline_lab.report.experiments import experiments
from paceline_lab.report.running import Cache, Runner, Scale
from paceline_lab.report.scheduling import introduction, write_report

CLASSES = {"latency": {"attainment": 0.5, "ttft_ms": {"p99": None}}}


def made(policy: str, seed: int, goodput: float) -> dict[str, object]:
    names = (
        "token_goodput_1_1",
        "token_goodput_1_8",
        "output_tokens",
        "wasted_tokens",
        "output_tokens_per_s",
    )
    return {
        "policy": policy, "seed": seed, "request_goodput": goodput, "classes": CLASSES,
        "share_of_bound": {"request_goodput": goodput / 20},
        **dict.fromkeys(names, 100 * goodput),
    }  # fmt: skip


def test_a_significant_loss_of_ours_is_written_down(tmp_path) -> None:
    """One that is not clear over the seeds is not called a loss, and one to the oracle is none."""
    variant = Variant("here", published={"gmax": "2x"})
    experiment = Experiment("x", "X", "Text.", ("sarathi", "gmax", "pace", "oracle"), (variant,))
    rows = [
        made(policy, seed, goodput + seed)
        for policy, goodput in (("sarathi", 1.0), ("gmax", 3.0), ("oracle", 9.0))
        for seed in (1, 2, 3)
    ] + [made("pace", seed, 2.0 + seed + 0.01 * seed) for seed in (1, 2, 3)]
    report = tmp_path / "report.md"
    write_report(report, [experiment], {"x": {"here": rows}}, introduction(Scale()), "")
    text = report.read_text()
    losses = [line for line in text.splitlines() if line.startswith("* ")]
    assert len(losses) == 2
    assert all("against `gmax`" in line for line in losses)
    assert "| here | gmax |" in text
    assert "2x |" in text
    assert "| 55% |" in text, "the oracle's share of the bound: 10, 11 and 12 of 20"
    assert "never" in text


def test_an_interrupted_report_goes_on_where_it_was(tmp_path) -> None:
    variant = Variant("light", load=0.9, batch=8)
    experiment = Experiment("x", "X", "", ("fcfs", "sarathi"), (variant,), seeds=1)
    said: list[str] = []
    scale = Scale(window_budgets=1.0)
    first = Runner(Cache(tmp_path, "1"), scale, 1, said.append).rows(
        [replace(experiment, policies=("fcfs",))]
    )
    assert {"1 runs, 0 of them are there", "1 bounds, 0 of them are there"} <= set(said)
    both = Runner(Cache(tmp_path, "1"), scale, 1, said.append).rows([experiment])
    assert {"2 runs, 1 of them are there", "1 bounds, 1 of them are there"} <= set(said)
    assert both["x"]["light"][0] == first["x"]["light"][0]
    assert [row["policy"] for row in both["x"]["light"]] == ["fcfs", "sarathi"]
    assert all(0 < row["share_of_bound"]["request_goodput"] <= 1 for row in both["x"]["light"])
    assert Cache(tmp_path, "2").get(next(iter(Cache(tmp_path, "1")._rows))) is None


def test_every_policy_of_the_report_exists() -> None:
    from paceline_core.batch.registry import make_policy

    for experiment in experiments():
        for policy in experiment.policies:
            assert make_policy(policy).name == policy
    with pytest.raises(ValueError, match="unknown"):
        make_policy("magic")
