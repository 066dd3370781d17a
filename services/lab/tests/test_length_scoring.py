"""Scores of distributions, and the splits they are computed on."""

import math

import numpy as np
import pytest

from paceline_core.lengths import OPEN_EDGE, UPPER, FloatArray, K, bin_of
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.scoring import by_group, crps_log, difference, score, summarise
from paceline_lab.lengths.splits import (
    by_prompt,
    leave_out_family,
    leave_out_model_family,
    leave_out_source,
    model_family,
)
from paceline_predictor.model import LengthQuestion


def example(tokens: int, *, prompt: str = "p", censored: bool = False, **asked: object) -> Example:
    fields: dict[str, object] = {"model": "m", "app": "chat", **asked}
    question = LengthQuestion(**fields)  # type: ignore[arg-type]
    source = str(fields["app"])
    return Example(question, tokens, censored, source, source, prompt, 1.0)


def log_normal(median: float, sigma: float) -> FloatArray:
    z = np.log((UPPER[:-1] + 0.5) / median) / (sigma * math.sqrt(2))
    cdf = np.array([*((1 + math.erf(x)) / 2 for x in z), 1.0])
    return np.diff(cdf, prepend=0.0)[None, :]


def point(tokens: int) -> FloatArray:
    masses = np.zeros((1, K))
    masses[0, bin_of(tokens)] = 1.0
    return masses


YES, NO, FREE = np.array([True]), np.array([False]), np.array([OPEN_EDGE])


def test_crps_of_a_normal_in_the_log() -> None:
    """Of a normal with spread s at its centre: s * (2 phi(0) - 1/sqrt(pi))."""
    found = crps_log(log_normal(400, 0.8), np.array([400.0]), NO, FREE)
    assert found[0] == pytest.approx(0.8 * (2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)), rel=0.02)


def test_crps_of_a_point_is_the_distance() -> None:
    found = crps_log(point(1000), np.array([100.0]), NO, FREE)
    assert found[0] == pytest.approx(math.log(10), abs=0.15)


def test_crps_is_lowest_for_what_is_true() -> None:
    lengths = np.exp(np.random.default_rng(1).normal(math.log(300), 0.7, 4000)).round().clip(1)
    for limit in (OPEN_EDGE, 350.0):
        limits, censored = np.full(4000, limit), lengths > limit
        seen = np.minimum(lengths, limit)
        mean = {
            guess: crps_log(np.repeat(log_normal(*guess), 4000, 0), seen, censored, limits).mean()
            for guess in ((300, 0.7), (240, 0.7), (380, 0.7), (300, 0.4), (300, 1.2))
        }
        assert min(mean, key=lambda guess: mean[guess]) == (300, 0.7)


def test_crps_of_a_cut_answer_asks_only_for_mass_above_the_cut() -> None:
    assert crps_log(point(1000), np.array([200.0]), YES, FREE)[0] == pytest.approx(0)
    assert crps_log(point(1000), np.array([200.0]), NO, FREE)[0] > 1
    assert crps_log(point(50), np.array([200.0]), YES, FREE)[0] > 1


def test_coverage_is_that_of_the_declared_levels() -> None:
    lengths = np.exp(np.random.default_rng(2).normal(math.log(300), 0.7, 4000)).round().clip(1).astype(int)
    examples = [example(int(length), prompt=str(i)) for i, length in enumerate(lengths)]
    found = summarise(score(np.repeat(log_normal(300, 0.7), 4000, 0), examples))
    assert found.coverage == pytest.approx((0.5, 0.9, 0.95), abs=0.03)
    assert found.coverage_rows == (4000, 4000, 4000)
    assert found.width_log == pytest.approx(0.7 * 2 * 1.2816, rel=0.06)
    assert found.p90_tokens == pytest.approx(300 * math.exp(0.7 * 1.2816), rel=0.05)


def test_bounds_at_or_past_the_limit_are_not_scored() -> None:
    """A bound that is clipped covers trivially."""
    scored = score(np.repeat(log_normal(300, 0.7), 2, 0), [example(100, max_tokens=400), example(100)])
    assert np.isnan(scored.within[0]).tolist() == [False, True, True]
    assert scored.within[1].tolist() == [1, 1, 1]


def test_cut_answers_miss_bounds_below_the_cut_and_leave_others_open() -> None:
    scored = score(log_normal(300, 0.7), [example(400, censored=True)])
    assert scored.within[0, 0] == 0
    assert np.isnan(scored.within[0, 1:]).all()
    assert scored.pinball_tokens[0, 0] == pytest.approx(0.5 * (400 - scored.quantiles[0, 0]))
    assert scored.pinball_tokens[0, 1:].tolist() == [0, 0]
    assert np.isnan(scored.within_2x[0])
    assert score(log_normal(100, 0.7), [example(400, censored=True)]).within_2x[0] == 0


def test_pinball_by_hand() -> None:
    scored = score(point(1000), [example(10)])
    expected = (1 - 0.9) * (scored.quantiles[0, 1] - 10)
    assert scored.pinball_tokens[0, 1] == pytest.approx(expected)
    assert scored.within_2x[0] == 0


def test_an_answer_in_progress_is_scored_on_what_may_still_be() -> None:
    scored = score(log_normal(100, 0.8), [example(900, generated_tokens=800)])
    assert scored.quantiles[0, 0] > 800
    assert scored.crps[0] < score(log_normal(100, 0.8), [example(900)]).crps[0]


def test_rows_must_match() -> None:
    with pytest.raises(ValueError, match="1 rows for 2 examples"):
        score(point(3), [example(3), example(4)])
    with pytest.raises(ValueError, match="no answers"):
        summarise(score(point(3), [example(3)]).take(np.array([False])))


def test_weights_and_groups() -> None:
    examples = [example(10, app="a"), example(1000, app="b"), example(1000, app="b")]
    scored = score(np.repeat(point(10), 3, 0), examples)
    groups = by_group(scored, [e.source for e in examples])
    assert groups["b"].rows == 2
    assert groups["a"].crps < summarise(scored).crps < groups["b"].crps


def test_difference_is_paired_and_by_prompt() -> None:
    rng = np.random.default_rng(3)
    prompts = [str(i // 4) for i in range(800)]
    hard = np.repeat(rng.exponential(1.0, 200), 4)
    ours, theirs = hard + rng.normal(0, 0.1, 800), hard + 0.1 + rng.normal(0, 0.1, 800)
    found = difference(ours, theirs, prompts)
    assert found.low < -0.1 < found.high < 0
    assert found.relative == pytest.approx(-0.1 / theirs.mean(), rel=0.2)
    shared = np.repeat(rng.normal(0, 1, 8), 100)
    few = difference(shared, np.zeros(800), [str(i // 100) for i in range(800)])
    assert few.high - few.low > 0.5  # eight prompts, however many rows


def corpus() -> list[Example]:
    models = ("gpt-4-0314", "gpt-4-0613", "text-davinci-003", "llama-3")
    return [
        example(5, prompt=str(i % 60), model=models[i % 4], app=("chat", "code")[i % 60 % 2])
        for i in range(400)
    ]


def test_folds_part_no_prompt_and_cover_all() -> None:
    examples = corpus()
    splits = by_prompt(examples, folds=4)
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(400))
    for split in splits:
        assert not {examples[i].prompt_id for i in split.train} & {examples[i].prompt_id for i in split.test}
        assert len(split.train) + len(split.test) == 400
    with pytest.raises(ValueError):
        by_prompt(examples, folds=1)


def test_the_fold_of_a_prompt_does_not_depend_on_the_corpus() -> None:
    examples = corpus()
    half = [e for e in examples if e.question.model.startswith("gpt")]
    tested = {examples[i].prompt_id for i in by_prompt(examples)[0].test}
    assert {half[i].prompt_id for i in by_prompt(half)[0].test} <= tested
    other = {examples[i].prompt_id for i in by_prompt(examples, seed=7)[0].test}
    assert other != tested


def test_a_family_of_models_is_left_out_whole() -> None:
    examples = corpus()
    splits = {split.name: split for split in leave_out_model_family(examples, unseen_prompts=False)}
    assert set(splits) == {"model gpt-4", "model gpt-3", "model llama"}
    gpt4 = splits["model gpt-4"]
    assert {examples[i].question.model for i in gpt4.test} == {"gpt-4-0314", "gpt-4-0613"}
    assert {examples[i].question.model for i in gpt4.train} == {"text-davinci-003", "llama-3"}
    for split in leave_out_model_family(examples):
        assert not {examples[i].prompt_id for i in split.train} & {examples[i].prompt_id for i in split.test}


def test_sources_and_families_are_left_out() -> None:
    assert [split.name for split in leave_out_source(corpus())] == ["source chat", "source code"]
    assert [split.name for split in leave_out_family(corpus())] == ["family chat", "family code"]


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-4o", "gpt-4"),
        ("GPT-3.5-turbo", "gpt-3.5"),
        ("smollm2-135m-instruct", "smollm"),
        ("mine", "mine"),
    ],
)
def test_model_family(model: str, family: str) -> None:
    assert model_family(model) == family
