"""`paceline train length` and `paceline eval length` on a small corpus in the public formats."""

import hashlib
import json
import lzma
import random
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from typer.testing import CliRunner

from paceline_cli.app import app

pytest.importorskip("sklearn", reason="training needs `make setup-train`")
pytest.importorskip("quantile_forest", reason="training needs `make setup-train`")

from paceline_lab.lengths import candidates, heldout, online_evaluation
from paceline_lab.lengths.dataset import load
from paceline_lab.lengths.ensemble.boosted import BoostedParams
from paceline_lab.lengths.moe.training import MoeParams
from paceline_lab.lengths.qrf.fitting import QrfParams

WORDS = [
    "river",
    "stone",
    "cloud",
    "winter",
    "garden",
    "engine",
    "paper",
    "silver",
    "window",
    "music",
    "forest",
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chat prompts whose wording says how long the answer gets, and instructions that are always short."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(7)
    chats, instructions = [], []
    for i in range(90):
        long = i % 2 == 0
        asked = "Write a detailed essay about" if long else "Answer in one word about"
        prompt = f"{asked} {draw.choice(WORDS)} and {draw.choice(WORDS)} number {i}"
        for model, factor in (("gpt-4-0314", 1.0), ("llama-2-7b-chat", 1.6)):
            length = max(2, round((300 if long else 12) * factor * draw.lognormvariate(0, 0.3)))
            text = " ".join(draw.choice(WORDS) for _ in range(length))
            chats.append(
                {
                    "qid": str(i),
                    "model": model,
                    "in_tok": 14,
                    "out_tok": length,
                    "prompt": prompt,
                    "response": text,
                }
            )
    for i in range(60):
        prompt = f"Instruction {i}: rewrite {draw.choice(WORDS)} {draw.choice(WORDS)} politely."
        for model in ("davinci", "text-davinci-003"):
            length = max(2, round(40 * draw.lognormvariate(0, 0.5)))
            text = " ".join(draw.choice(WORDS) for _ in range(length))
            instructions.append(
                {"model": model, "prompt": prompt, "response": text, "in_tok": 20, "out_tok": length}
            )
    write_lines(folder / "arena-hard" / "answers.jsonl.xz", chats)
    write_lines(folder / "self-instruct-eval" / "predictions.jsonl.xz", instructions)
    return folder


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "QRF_PARAMS", QrfParams(trees=10, components=4))
    monkeypatch.setattr(candidates, "MOE_PARAMS", MoeParams(members=1, steps=60, every=20, components=4))
    monkeypatch.setattr(candidates, "BOOSTED_PARAMS", BoostedParams(iterations=5, components=4))
    monkeypatch.setattr(online_evaluation, "SCORED_OUTCOMES", 40)
    monkeypatch.setattr(heldout, "LEAST_STREAM", 50)


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_without_data_the_command_says_what_is_missing_and_where_it_is(tmp_path: Path) -> None:
    for command in ("train", "eval"):
        for arguments in ((), ("--data", tmp_path / "nowhere"), ("--data", tmp_path)):
            result = run(command, "length", *arguments)
            assert result.exit_code == 2
            assert "--data" in result.output
            assert "arena-hard" in result.output
            assert "openai/grade-school-math" in result.output


def test_a_folder_without_any_set_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "something.txt").write_text("else")
    result = run("train", "length", "--data", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "too few examples" in result.output
    assert not (tmp_path / "out").exists()


def test_training_writes_a_model_and_its_card_and_does_so_again(data: Path, tmp_path: Path) -> None:
    result = run("train", "length", "--data", data, "--out", tmp_path, "--seed", 3, "--quick", "--jobs", 1)
    assert result.exit_code == 0, result.output
    content = (tmp_path / "length.onnx").read_bytes()
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert hashlib.sha256(content).hexdigest() in card
    assert re.search(r"arena-hard \| Apache-2.0 \| 90 \| 2 \| 180", card)
    assert "--seed 3" in card
    assert str(tmp_path) not in card
    meta = onnxruntime.InferenceSession(content).get_modelmeta().custom_metadata_map
    said = json.loads(meta["paceline.card"])
    assert said["data"]["sources"]["arena-hard"]["examples"] == 180
    assert set(json.loads(meta["paceline.offsets"])) >= {"gpt-4-0314", "llama-2-7b-chat"}
    kind = meta["paceline.kind"]
    again = candidates.fit_candidates(load(data).examples, 3, (kind,), said)[kind]
    assert again.model.SerializeToString(deterministic=True) == content


def test_evaluation_reports_every_learner_on_every_split(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = run(
        "eval",
        "length",
        "--data",
        data,
        "--out",
        out,
        "--quick",
        "--jobs",
        1,
        "--splits",
        "prompt,family",
        "--json",
    )
    assert result.exit_code == 0, result.output
    document = json.loads((out / "evaluation.json").read_text())
    assert {"static", "online", "unseen_models", "refinement", "by_family", "reliability", "targets"} <= set(
        document
    )
    kinds = {name.partition(":")[0] for name in document["static"]}
    assert kinds == {"prompt", "model"}
    prompt = document["static"]["prompt"]
    assert {"qrf", "moe", "mixture", "ridge", "per-app histogram"} <= set(prompt["learners"])
    candidate = prompt["learners"][document["candidate"]]
    # The wording decides the length here, so a model of text must know far more than a histogram.
    assert candidate["crps"] < 0.8 * prompt["learners"]["per-app histogram"]["crps"]
    assert prompt["gain"]["per-app histogram"]["low"] > 0.1
    shares = [point["share_out"] for point in document["refinement"]["curves"]["given that it goes on"]]
    assert shares == [0, 0.25, 0.5, 0.75]
    recovered = next(iter(document["unseen_models"]["families"].values()))
    assert recovered["after_20"]["scored"] == 40
    report = (out / "report.md").read_text()
    assert "## Against the targets" in report
    for picture in re.findall(r"\((\w+\.png)\)", report):
        assert (out / picture).stat().st_size > 1000
    assert "Missing: " in report


def test_unknown_splits_are_refused(data: Path) -> None:
    result = CliRunner().invoke(app, ["eval", "length", "--data", str(data), "--splits", "moon"])
    assert result.exit_code != 0
    assert "moon" in str(result.exception)
