"""The mixture of experts from examples to answers: through features, offsets and the graph that ships."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from paceline_core.lengths import EDGES, MIDDLE, K
from paceline_lab.lengths.example import Example, text_id
from paceline_lab.lengths.moe.learner import MoeLearner, fit_moe
from paceline_lab.lengths.moe.share import held_out_share
from paceline_lab.lengths.moe.training import MoeParams
from paceline_predictor.features import FEATURES_VERSION
from paceline_predictor.model import LengthQuestion

QUICK = MoeParams(components=8, hidden=8, basis=6, members=2, steps=250, every=50, learning_rate=1e-2)
TOPICS = {"maths": ("add the numbers", 40), "code": ("write a python function", 300)}


def examples(prompts: int = 80, seed: int = 0) -> list[Example]:
    """Two families of prompts, answered by two models: the wordy one says twice as much."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        family = ("maths", "code")[number % 2]
        words, typical = TOPICS[family]
        prompt = f"{words} {' '.join(rng.choice(['red', 'blue', 'green', 'seven', 'list'], 6))} {number}"
        for model, factor in (("terse", 1.0), ("wordy", 2.0)):
            length = max(1, round(typical * factor * float(np.exp(0.3 * rng.standard_normal()))))
            question = LengthQuestion(model, "app", prompt_head=prompt, prompt_tokens=len(prompt) // 4)
            rows.append(
                Example(
                    question=question,
                    output_tokens=length,
                    censored=False,
                    source="made up",
                    family=family,
                    prompt_id=text_id(prompt),
                    weight=0.7,
                )
            )
    return rows


@pytest.fixture(scope="module")
def learner() -> MoeLearner:
    fitted = MoeLearner(QUICK)
    fitted.fit(examples())
    return fitted


def test_known_models_are_answered_with_their_offset_and_families_apart(learner: MoeLearner) -> None:
    asked = [
        LengthQuestion(model, "app", prompt_head=f"{TOPICS[family][0]} red green blue 901", prompt_tokens=12)
        for family in ("maths", "code")
        for model in ("terse", "wordy")
    ]
    masses = learner.predict(asked)
    assert masses.shape == (4, K)
    np.testing.assert_allclose(masses.sum(axis=1), 1.0, atol=1e-5)
    log_mean = masses @ np.log(MIDDLE)
    for row in (0, 2):
        assert log_mean[row + 1] - log_mean[row] == pytest.approx(np.log(2), abs=0.25)
    assert log_mean[2] - log_mean[0] > 1.0


def test_the_answer_does_not_depend_on_what_training_sets_give_away(learner: MoeLearner) -> None:
    """Every training row had one app, no limit and no temperature: a live question's must not move its answer."""
    plain = LengthQuestion("nobody", "", prompt_head="add the numbers red 17", prompt_tokens=9)
    other = dataclasses.replace(plain, app="shop", max_tokens=256, temperature=1.0)
    first, second = learner.predict([plain, other])
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_file_says_what_it_is(learner: MoeLearner) -> None:
    assert learner.model is not None
    said = {entry.key: entry.value for entry in learner.model.metadata_props}
    assert said["paceline.kind"] == "moe"
    assert said["paceline.features"] == FEATURES_VERSION
    assert said["paceline.version"].startswith("moe-")
    assert str(EDGES[-1]) in said["paceline.edges"]
    assert learner.model.ByteSize() < 3_000_000


def test_fitting_nothing_is_refused_and_asking_comes_after_fitting() -> None:
    with pytest.raises(ValueError, match="no examples"):
        fit_moe([], params=QUICK)
    with pytest.raises(ValueError, match="fit comes first"):
        MoeLearner().predict([LengthQuestion("m", "a")])


def test_a_useless_partner_gets_little_of_the_mixture(learner: MoeLearner) -> None:
    """The partner says the same of every question; the share is judged on prompts that neither was fitted on."""
    rows = examples(prompts=40, seed=3)
    quick = dataclasses.replace(QUICK, members=1, steps=100)

    def useless(given: Sequence[Example]) -> onnx.ModelProto:
        said = [dataclasses.replace(e.question, prompt_head=f"x {'yz'[i % 2]}") for i, e in enumerate(given)]
        blurred = [dataclasses.replace(e, question=q) for e, q in zip(given, said, strict=True)]
        return fit_moe(blurred, offsets={}, params=quick)

    def good(given: Sequence[Example]) -> onnx.ModelProto:
        return fit_moe(given, offsets={}, params=quick)

    assert held_out_share(rows, {}, good, useless) > 0.7
