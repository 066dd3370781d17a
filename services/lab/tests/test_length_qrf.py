import dataclasses

import numpy as np
import pytest

from paceline_core.lengths import K, bin_of, cdf_from_probabilities, quantile
from paceline_lab.lengths.dataset import with_progress
from paceline_lab.lengths.example import Example, text_id
from paceline_lab.lengths.graph import offsets_in
from paceline_lab.lengths.qrf.fitting import QrfParams
from paceline_lab.lengths.qrf.learner import QrfLearner, fit_qrf
from paceline_predictor.features import FEATURES_VERSION
from paceline_predictor.model import LengthQuestion

SMALL = QrfParams(trees=12, progress_trees=8, components=4, leaf_weight=5, progress_leaf_weight=0.5)
KINDS = {"translate the word": 8, "write a function that sorts": 120, "tell a long story about": 700}


def _examples(count: int, seed: int, output: bool = False, cut_at: int | None = None) -> list[Example]:
    """Short, middling and long answers, told apart by their prompts; one model writes twice as much as the other."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        kind, length = list(KINDS.items())[int(random.integers(len(KINDS)))]
        prompt = f"{kind} {random.integers(1000)} please, number {i} of {seed}"
        for model, factor in (("terse", 1), ("wordy", 2)):
            tokens = max(1, round(float(length * factor * np.exp(random.normal(0, 0.3)))))
            cut = cut_at is not None and tokens > cut_at
            rows.append(
                Example(
                    question=LengthQuestion(model, "app", prompt_head=prompt, prompt_tokens=len(prompt) // 4),
                    output_tokens=min(tokens, cut_at) if cut and cut_at else tokens,
                    censored=cut,
                    source="made",
                    family=kind.split()[0],
                    prompt_id=text_id(prompt),
                    weight=0.7,
                    output="word " * tokens if output else "",
                )
            )
    return rows


@pytest.fixture(scope="module")
def learner() -> QrfLearner:
    learner = QrfLearner(SMALL)
    examples = _examples(200, 0, output=True)
    learner.fit(examples + with_progress(examples))
    return learner


def _median(masses: np.ndarray) -> np.ndarray:
    n = len(masses)
    return quantile(cdf_from_probabilities(masses), 0.5, np.zeros(n), np.full(n, 65_536.0))


def test_the_forest_tells_prompts_and_models_apart(learner: QrfLearner):
    rows = _examples(40, 1)
    masses = learner.predict([row.question for row in rows])
    assert masses.shape == (80, K)
    assert np.allclose(masses.sum(axis=1), 1, atol=1e-4)
    error = np.log(_median(masses) / np.array([row.output_tokens for row in rows]))
    assert np.abs(error).mean() < 0.45
    wordy, terse = (
        _median(learner.predict([dataclasses.replace(r.question, model=m) for r in rows]))
        for m in ("wordy", "terse")
    )
    assert 1.5 < np.median(wordy / terse) < 2.7


def test_an_answer_in_progress_is_asked_of_the_trees_of_survivors(learner: QrfLearner):
    """No word is translated with 100 tokens; once 100 are out, survivors of other kinds are what there is to go by."""
    asked = [row.question for row in _examples(60, 1) if "translate" in row.question.prompt_head]
    later = [dataclasses.replace(q, generated_tokens=100, output_tail="word " * 100) for q in asked]
    arrival, progress = (
        learner.predict(rows)[:, bin_of(100) :].sum(axis=1).mean() for rows in (asked, later)
    )
    assert arrival < 0.05
    assert progress > arrival + 0.05


def test_the_file_says_what_it_is(learner: QrfLearner):
    assert learner.model is not None
    properties = {p.key: p.value for p in learner.model.metadata_props}
    assert properties["paceline.kind"] == "qrf"
    assert properties["paceline.features"] == FEATURES_VERSION
    offsets = offsets_in(learner.model)
    assert offsets["wordy"]["log"] - offsets["terse"]["log"] == pytest.approx(np.log(2), abs=0.15)


def test_the_same_examples_give_the_same_file():
    examples = _examples(40, 0)
    first, second = (fit_qrf(examples, SMALL).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_cut_answers_are_taken_as_longer_not_as_ended():
    """Half of the long answers are cut at 500: their median must not sink to where they were cut."""
    rows = [row for row in _examples(120, 0) if "story" in row.question.prompt_head]
    cut = [row for row in _examples(120, 0, cut_at=700) if "story" in row.question.prompt_head]
    ended = [dataclasses.replace(row, censored=False) for row in cut]
    asked = [dataclasses.replace(row.question, model="") for row in rows[:20]]
    medians = []
    for examples in (rows, cut, ended):
        learner = QrfLearner(SMALL)
        learner.fit(examples)
        medians.append(float(np.median(_median(learner.predict(asked)))))
    true, with_survival, naive = medians
    assert abs(np.log(with_survival / true)) < abs(np.log(naive / true))


def test_without_examples_there_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no examples"):
        fit_qrf([])
    with pytest.raises(ValueError, match="fit comes first"):
        QrfLearner().predict([LengthQuestion("m", "a")])
