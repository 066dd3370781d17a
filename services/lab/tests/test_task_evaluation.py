"""Loaders, the budget test, and an evaluation on a few made-up tasks."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from paceline_lab.tasks.budget import run_budget
from paceline_lab.tasks.checkpoints import checkpoint
from paceline_lab.tasks.dataset import fold_of, load
from paceline_lab.tasks.rivals import AppMean, JitServe

NAN = float("nan")


def research_set(folder: Path, tasks: int) -> Path:
    """Tasks of four or six stages; the third tells which."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(tasks):
        stages = [[90], [800, 700], [20], [500]]
        if number % 2:
            stages = [[90], [800, 700], [150], [700], [120], [900]]
        drawn = [
            [
                {"input_tokens": 100, "output_tokens": max(round(n * random.lognormal(0, 0.1)), 1)}
                for n in group
            ]
            for group in stages
        ]
        rows.append(json.dumps({"request_id": number, "stages": drawn}))
    (folder / "jitserve-deepresearch").mkdir(parents=True)
    with gzip.open(folder / "jitserve-deepresearch" / "deepresearch_training_subset.jsonl.gz", "wt") as file:
        file.write("\n".join(rows))
    return folder


def test_missing_and_broken_sets_are_told(tmp_path: Path) -> None:
    data = research_set(tmp_path, 3)
    (data / "tot-logs").mkdir()
    (data / "tot-logs" / "tot_dags.jsonl.gz").write_bytes(b"not gzip")
    corpus = load(data)
    assert len(corpus.examples) == 3
    assert any(text.startswith("tot-logs: cannot be read") for text in corpus.missing)
    assert any(text.startswith("acr-swe-calls: no folder") for text in corpus.missing)
    assert corpus.examples[1].stages.critical_tokens.shape == (6,)


def test_a_group_stays_in_one_fold() -> None:
    folds = [fold_of(f"g{i}", 5) for i in range(500)]
    assert folds == [fold_of(f"g{i}", 5) for i in range(500)]
    assert min(folds.count(f) for f in range(5)) > 60


def test_true_shares_need_no_more_than_the_common_speed() -> None:
    work = [100.0, 300.0, 50.0]
    true = [100 / 450, 300 / 350, 1.0]
    met, pressure, fastest = run_budget(work, true, [NAN] * 3, 4.0)
    assert met
    assert pressure == pytest.approx(1.0)
    assert fastest == pytest.approx(1.0)
    greedy = run_budget(work, [0.99, 0.9, 1.0], [NAN] * 3, 4.0)
    assert not greedy[0]
    assert greedy[1] > 1.5


def test_rivals_say_what_they_are_said_to(tmp_path: Path) -> None:
    short, long = load(research_set(tmp_path, 2)).examples
    jitserve, mean = JitServe(), AppMean()
    for rival in (jitserve, mean):
        rival.fit([short, long])
    answer = jitserve.answer(checkpoint(long, 0, 3, running=True))
    work = long.stages.critical_tokens
    if answer.match is long:
        assert answer.phi == pytest.approx(work[:3].sum() / work.sum())
    after = jitserve.answer(checkpoint(short, 0, 3, running=False))
    assert after.match is short
    assert after.critical_tokens == short.stages.critical_tokens[3]
    alive = mean.answer(checkpoint(long, 0, 5, running=False))
    assert alive.critical_tokens == work[5]
    assert math.isnan(alive.phi)


def test_an_evaluation_scores_all_methods_and_writes_its_report(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="training needs what `make setup-train` installs")
    pytest.importorskip("scipy", reason="training needs what `make setup-train` installs")
    from paceline_lab.tasks.evaluate import evaluate_tasks

    told: list[tuple[str, int, int]] = []
    result = evaluate_tasks(
        research_set(tmp_path / "data", 24),
        tmp_path / "out",
        lambda stage, done, total: told.append((stage, done, total)),
        folds=2,
    )
    table = result["families"]["deep-research"]
    assert {"paceline", "jitserve", "app-mean", "equal"} <= set(table)
    assert table["paceline"]["share_error"] < table["equal"]["share_error"]
    assert table["paceline"]["log_error_by_stage"]["3"] < table["paceline"]["log_error_by_stage"]["2"]
    assert told[-1] == ("fold", 2, 2)
    ours = table["paceline"]
    assert 0 <= ours["shape_match"] <= 1
    assert 0 <= ours["shape_knowable"] <= ours["shape_hindsight"]
    assert list(ours["relative_error_same_tasks"]) == [str(s) for s in range(1, 5)]
    assert "Apache-2.0" in (tmp_path / "out" / "tasks-card.md").read_text()
    assert (
        json.loads((tmp_path / "out" / "tasks.json").read_text())["overall"].keys()
        == result["overall"].keys()
    )
    for name in ("tasks.md", "tasks-card.md", "tasks-error.png", "tasks-cold-start.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500


def test_without_any_set_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="training needs what `make setup-train` installs")
    from paceline_lab.tasks.evaluate import evaluate_tasks

    with pytest.raises(ValueError, match="no task set"):
        evaluate_tasks(tmp_path)
