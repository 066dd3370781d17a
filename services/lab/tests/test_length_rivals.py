"""Offsets of models, and the simple rivals, on answers whose distribution is known."""

import dataclasses
import math

import numpy as np
import pytest

from paceline_core.lengths import K
from paceline_lab.lengths.design import fit_design, raw_features
from paceline_lab.lengths.example import Example, text_id
from paceline_lab.lengths.offsets import (
    Offsets,
    model_offsets,
    offsets_of,
    served_offsets,
    shifted,
    standardised,
)
from paceline_lab.lengths.rivals import LengthLearner, all_rivals
from paceline_lab.lengths.rivals.boosted import BoostedQuantiles
from paceline_lab.lengths.rivals.histograms import AppHistogram, GlobalHistogram, PairHistogram
from paceline_lab.lengths.rivals.linear import RidgeLengths
from paceline_lab.lengths.rivals.masses import counted, from_quantiles, from_residuals, pooled
from paceline_lab.lengths.rivals.neighbours import Neighbours
from paceline_lab.lengths.scoring import score, summarise
from paceline_lab.lengths.splits import by_prompt
from paceline_predictor.model import LengthQuestion

KINDS = {"list": 60, "essay": 600, "yes or no": 8}
TOPICS = ("rome", "whales", "steel", "music", "bread", "stars", "trees", "maps")
MODELS = {"terse": -0.6, "plain": 0.0, "wordy": 0.6}


def answers(prompts: int = 150, seed: int = 0, limit: int = 10**9) -> list[Example]:
    """Each prompt answered by each model: kind decides the median, the model shifts it, the rest is chance."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        kind = tuple(KINDS)[number % len(KINDS)]
        text = f"Write a {kind} about {rng.choice(TOPICS)} and {rng.choice(TOPICS)}, number {number}"
        for model, offset in MODELS.items():
            tokens = max(1, round(KINDS[kind] * math.exp(offset + rng.normal(0, 0.3))))
            question = LengthQuestion(model, "mix", prompt_head=text, prompt_tokens=12)
            rows.append(Example(question, min(tokens, limit), tokens > limit, "s", kind, text_id(text), 1.0))
    return rows


def differences(offsets: Offsets) -> tuple[float, float]:
    log = {model: offsets[model]["apps"]["mix"][0] for model in MODELS}
    return log["plain"] - log["terse"], log["wordy"] - log["plain"]


def test_offsets_are_found() -> None:
    offsets = model_offsets(answers())
    assert differences(offsets) == pytest.approx((0.6, 0.6), abs=0.12)
    assert sum(offsets[model]["log"] for model in MODELS) == pytest.approx(0, abs=0.01)
    assert offsets["terse"]["outcomes"] == 150
    assert -0.6 < offsets["terse"]["log"] < -0.3  # for other apps: nearer to the typical model


def test_offsets_of_cut_answers() -> None:
    cut = answers(limit=700)
    as_if_ended = [dataclasses.replace(row, censored=False) for row in cut]
    assert differences(model_offsets(cut))[1] == pytest.approx(0.6, abs=0.15)
    assert differences(model_offsets(as_if_ended))[1] < differences(model_offsets(cut))[1] - 0.05


def test_rows_in_progress_do_not_count() -> None:
    rows = answers(40)
    later = [
        dataclasses.replace(row, question=dataclasses.replace(row.question, generated_tokens=5))
        for row in rows
    ]
    assert model_offsets([*rows, *later]) == model_offsets(rows)
    assert model_offsets(later) == {}
    assert served_offsets(later, {}) == {}


def test_standardised_lengths_are_those_of_a_typical_model() -> None:
    rows = answers()
    offsets = model_offsets(rows)
    typical = standardised(rows, offsets)
    means = [
        np.mean([math.log(row.output_tokens) for row in typical if row.question.model == model])
        for model in MODELS
    ]
    assert np.ptp(means) < 0.25
    assert offsets_of(offsets, [LengthQuestion("unheard of", "x")]).tolist() == [0.0]


def test_served_offsets_take_out_what_a_model_of_texts_misses() -> None:
    """No text tells the short answers of one model from the long ones of another to other prompts of the same kind."""
    rng = np.random.default_rng(4)

    def row(number: int, model: str, median: int) -> Example:
        words = " ".join("".join(rng.choice(list("abcdefgh"), 6)) for _ in range(12))
        question = LengthQuestion(model, "mix", prompt_head=words, prompt_tokens=12)
        tokens = round(median * math.exp(rng.normal(0, 0.2)))
        return Example(question, tokens, False, "s", "mix", f"{model} {number}", 1.0)

    rows = [row(i, model, median) for model, median in (("short", 60), ("long", 900)) for i in range(60)]
    trained = model_offsets(rows)
    served = served_offsets(rows, trained)

    def apart(offsets: Offsets) -> float:
        whole = offsets["long"]["apps"]["mix"][0] - offsets["short"]["apps"]["mix"][0]
        return float(whole)

    assert apart(trained) < apart(served)
    assert apart(served) == pytest.approx(math.log(900 / 60), rel=0.15)
    assert served["long"]["outcomes"] == 60


def test_shifting_moves_the_median() -> None:
    masses = from_residuals(np.array([math.log(200.0)]), np.linspace(-0.5, 0.5, 101), np.ones(101))
    example = answers(1)[0]
    before = score(masses, [example]).quantiles[0, 0]
    after = score(shifted(masses, np.array([0.7])), [example]).quantiles[0, 0]
    assert math.log(after / before) == pytest.approx(0.7, abs=0.1)


def test_masses_of_samples_and_quantiles() -> None:
    lengths, censored = np.array([5.0, 50.0, 50.0]), np.array([False, False, True])
    root = np.full((1, K), 1 / K)
    masses = pooled(counted(lengths, censored, np.ones(3), np.zeros(3, dtype=np.int64), 1), root, 1e-6)
    assert masses.sum() == pytest.approx(1)
    assert masses[0, masses[0] > 0.05].tolist()[0] == pytest.approx(1 / 3, abs=0.01)
    levels = np.array([0.1, 0.5, 0.9])
    crossed = from_quantiles(levels, np.log([[300.0, 200.0, 800.0]]), 1.0)
    assert crossed.sum() == pytest.approx(1)
    assert (crossed >= 0).all()
    found = score(crossed, [answers(1)[0]])
    assert found.quantiles[0, 0] == pytest.approx(300, rel=0.1)


@pytest.fixture(scope="module")
def scored() -> dict[str, float]:
    """CRPS of each rival on unseen prompts."""
    rows = answers(120)
    split = by_prompt(rows, folds=3)[0]
    train, test = [rows[i] for i in split.train], [rows[i] for i in split.test]
    found = {}
    learners: list[LengthLearner] = [
        GlobalHistogram(),
        AppHistogram(),
        PairHistogram(),
        RidgeLengths(),
        BoostedQuantiles(iterations=10),
        Neighbours(),
    ]
    for learner in learners:
        learner.fit(train)
        masses = learner.predict([row.question for row in test])
        assert masses.shape == (len(test), K)
        assert (masses >= 0).all()
        np.testing.assert_allclose(masses.sum(axis=1), 1, atol=1e-9)
        found[learner.name] = summarise(score(masses, test)).crps
    return found


def test_what_reads_the_text_beats_what_does_not(scored: dict[str, float]) -> None:
    blind = min(scored[name] for name in scored if "histogram" in name)
    assert max(scored["ridge"], scored["boosted quantiles"], scored["nearest neighbours"]) < 0.7 * blind


def test_all_rivals_are_named_apart() -> None:
    names = [learner.name for learner in all_rivals()]
    assert len(set(names)) == len(names) == 6


def test_histograms_answer_what_they_never_saw() -> None:
    rows = answers(30)
    learner = PairHistogram()
    learner.fit(rows)
    asked = [LengthQuestion("terse", "mix"), LengthQuestion("terse", "new"), LengthQuestion("new", "new")]
    known, of_model, of_all = learner.predict(asked)
    assert np.abs(known - of_model).sum() < np.abs(known - of_all).sum()


def test_design_keeps_the_app_apart_from_the_words() -> None:
    raw = raw_features([row.question for row in answers(5)])
    design = fit_design(raw)
    text = design.text(raw)
    norms = np.sqrt(text.multiply(text).sum(axis=1))
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert design.apps(raw).sum(axis=1).min() == 1
    assert design.rows(raw).shape[0] == 15
    with pytest.raises(ValueError, match="no questions"):
        raw_features([])
