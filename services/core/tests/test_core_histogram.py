"""Length histograms: exact where the answer is known, calibrated where it is not, bounded and restorable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.histogram import HistogramParams, LengthHistograms, posterior, prior
from paceline_core.lengths import K, bin_of, cdf_at, cdf_from_probabilities, conditioned, quantile
from paceline_core.saved_state import StateError

PARAMS = HistogramParams()
MASSES = st.lists(st.floats(0, 100), min_size=K, max_size=K).map(np.array)


def p90(learner: LengthHistograms, model: str = "m", app: str = "a", max_tokens: float = 1e9) -> float:
    cdf = cdf_from_probabilities(learner.probabilities(model, app))
    return float(quantile(cdf, 0.9, np.zeros(1), np.array([max_tokens]))[0])


def lognormal(seed: int, n: int, median: float, sigma: float) -> list[int]:
    draws = np.random.default_rng(seed).lognormal(np.log(median), sigma, n)
    return [max(1, round(x)) for x in draws]


def test_nothing_learned_answers_with_the_prior() -> None:
    learner = LengthHistograms()
    assert learner.probabilities("m", "a") == pytest.approx(prior(PARAMS))
    assert (learner.observed, learner.coverage_p90(), learner.keys) == (0, 0.0, 0)


@given(MASSES, st.floats(0.1, 50))
def test_without_censoring_it_is_the_dirichlet_mean(events: np.ndarray, concentration: float) -> None:
    parent = prior(PARAMS)
    counts = np.zeros((1, 3, K))
    counts[0, 0] = events
    expected = (events + concentration * parent) / (events.sum() + concentration)
    assert posterior(counts, parent[None, :], concentration)[0] == pytest.approx(expected, abs=1e-9)


@given(MASSES, MASSES, st.floats(0, 1))
def test_it_is_a_distribution_whatever_the_censoring(
    events: np.ndarray, censored: np.ndarray, share: float
) -> None:
    counts = np.stack([events, censored, share * censored])[None]
    p = posterior(counts, prior(PARAMS)[None, :], 8.0)
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1.0)


def test_kaplan_meier_by_hand() -> None:
    """Ten answers: 4 end in bin 10, 3 are cut at the top of bin 20, 3 end in bin 30: P(bin 30) = 0.6 * 3/3."""
    counts = np.zeros((1, 3, K))
    counts[0, 0, 10], counts[0, 1, 20], counts[0, 2, 20], counts[0, 0, 30] = 4, 3, 3, 3
    p = posterior(counts, prior(PARAMS)[None, :], 1e-9)[0]
    assert p[10] == pytest.approx(0.4, abs=1e-6)
    assert p[20] == pytest.approx(0.0, abs=1e-6)
    assert p[30] == pytest.approx(0.6, abs=1e-6)


def test_cut_answers_do_not_look_short() -> None:
    """A limit of 128 cuts most answers; the tail learned from uncut requests of the same app must remain."""
    learner = LengthHistograms()
    for number, length in enumerate(lognormal(1, 4_000, 300, 0.6)):
        limit = 128 if number % 2 else 10_000
        learner.observe("m", "a", min(length, limit), censored=length > limit, max_tokens=limit)
    lengths = np.array(lognormal(2, 100_000, 300, 0.6))
    cdf = cdf_from_probabilities(learner.probabilities("m", "a"))
    for x in (100.0, 200.0, 300.0, 500.0, 800.0):
        assert cdf_at(cdf, np.array([x]))[0] == pytest.approx(float((lengths <= x).mean()), abs=0.06)


@pytest.mark.parametrize(("median", "sigma", "seed"), [(40, 0.5, 3), (250, 1.0, 4), (1_500, 0.8, 5)])
def test_p90_covers_what_it_says_after_some_hundreds(median: float, sigma: float, seed: int) -> None:
    learner = LengthHistograms()
    hits = []
    for number, length in enumerate(lognormal(seed, 1_500, median, sigma)):
        if number >= 200:
            hits.append(length <= p90(learner))
        learner.observe("m", "a", length)
    assert np.mean(hits) == pytest.approx(0.9, abs=0.035)
    assert learner.coverage_p90("m", "a") == pytest.approx(0.9, abs=0.08)


def test_a_new_app_begins_where_its_model_is() -> None:
    learner = LengthHistograms()
    for length in lognormal(6, 500, 60, 0.3):
        learner.observe("short", "known", length)
    for length in lognormal(7, 500, 2_000, 0.3):
        learner.observe("long", "known", length)
    assert p90(learner, "short", "new") < 150 < 1_000 < p90(learner, "long", "new")
    assert p90(learner, "short", "known") < p90(learner, "unheard of", "new") < p90(learner, "long", "known")
    for _ in range(60):
        learner.observe("short", "new", 900)
    assert p90(learner, "short", "new") > 600
    assert p90(learner, "short", "known") < 150


def test_old_outcomes_fade() -> None:
    learner = LengthHistograms(HistogramParams(half_life_outcomes=50))
    for _ in range(500):
        learner.observe("m", "a", 2_000)
    for _ in range(400):
        learner.observe("m", "a", 20)
    assert p90(learner) < 100


def test_keys_are_bounded_and_the_least_observed_of_late_leave() -> None:
    learner = LengthHistograms(HistogramParams(max_keys=20, max_models=4))
    for i in range(1_000):
        learner.observe(f"m{i % 50}", f"a{i}", 10)
        learner.observe("m", "kept", 10)
    assert learner.keys == 20
    assert learner.observed == 2_000
    assert learner.observed_of("m", "kept") == 1_000
    assert learner.observed_of("m0", "a0") == 0
    assert learner.observed_of("m49", "a999") == 1
    assert learner.probabilities("m0", "a0").sum() == pytest.approx(1)


def test_coverage_knows_what_censoring_hides() -> None:
    learner = LengthHistograms(HistogramParams(coverage_min_outcomes=1))
    learner.observe("m", "hidden", 10, censored=True, declared_p90=50)
    assert learner.coverage_p90("m", "hidden") == 0.0
    learner.observe("m", "missed", 60, censored=True, declared_p90=50)
    learner.observe("m", "missed", 60, censored=True, declared_p90=50)
    assert learner.coverage_p90("m", "missed") == pytest.approx(0.001)
    for _ in range(3):
        learner.observe("m", "clipped", 64, censored=True, declared_p90=500, max_tokens=64)
        learner.observe("m", "clipped", 20, declared_p90=64, max_tokens=64)
    assert learner.coverage_p90("m", "clipped") == 0.0, "a bound at the limit is always kept"
    learner.observe("m", "clipped", 20, declared_p90=63, max_tokens=64)
    assert learner.coverage_p90("m", "clipped") == 1.0


def test_an_outcome_that_says_nothing_is_refused() -> None:
    learner = LengthHistograms()
    with pytest.raises(ValueError):
        learner.observe("m", "a", 0, censored=True)
    learner.observe("m", "a", 0)
    assert learner.observed == 1


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from("abcdef"), st.integers(1, 40_000), st.booleans()),
        max_size=60,
    )
)
def test_state_survives_and_learning_goes_on_as_if_nothing_had_happened(
    outcomes: list[tuple[str, str, int, bool]],
) -> None:
    params = HistogramParams(max_keys=5, max_models=2)
    whole, first = LengthHistograms(params), LengthHistograms(params)
    half = len(outcomes) // 2
    for model, app, length, censored in outcomes[:half]:
        whole.observe(model, app, length, censored=censored)
        first.observe(model, app, length, censored=censored)
    second = LengthHistograms.from_bytes(first.to_bytes(), params)
    for model, app, length, censored in outcomes[half:]:
        whole.observe(model, app, length, censored=censored)
        second.observe(model, app, length, censored=censored)
    assert second.to_bytes() == whole.to_bytes()
    keys = [(model, app) for model in "xyz" for app in "abcdef"]
    assert (second.probabilities_of(keys) == whole.probabilities_of(keys)).all()


def test_damaged_state_is_refused() -> None:
    learner = LengthHistograms()
    for length in lognormal(8, 50, 100, 1):
        learner.observe("m", "a", length)
    state = learner.to_bytes()
    for damaged in (
        b"",
        b"garbage",
        state[:-1],
        state[:40],
        b"PLH9" + state[4:],
        state[:-9] + b"x" + state[-8:],
    ):
        with pytest.raises(StateError):
            LengthHistograms.from_bytes(damaged)


def test_fewer_keys_than_were_saved_keeps_the_latest() -> None:
    learner = LengthHistograms()
    for i in range(40):
        learner.observe("m", f"a{i}", 10)
    small = LengthHistograms.from_bytes(learner.to_bytes(), HistogramParams(max_keys=3))
    assert small.keys == 3
    assert [small.observed_of("m", f"a{i}") for i in (36, 37, 38, 39)] == [0, 1, 1, 1]


def test_a_batch_answers_like_single_questions() -> None:
    learner = LengthHistograms()
    for number, length in enumerate(lognormal(9, 300, 100, 1)):
        learner.observe(f"m{number % 3}", f"a{number % 7}", length)
    keys = [(f"m{i % 4}", f"a{i % 9}") for i in range(50)]
    batch = learner.probabilities_of(keys)
    for row, (model, app) in zip(batch, keys, strict=True):
        assert row == pytest.approx(learner.probabilities(model, app))


@given(MASSES.filter(lambda p: p.sum() > 0), st.integers(0, 70_000), st.integers(1, 70_000))
def test_conditioning_and_clipping(p: np.ndarray, generated: int, max_tokens: int) -> None:
    out = conditioned((p / p.sum())[None], np.array([generated]), np.array([max_tokens]))[0]
    assert out.sum() == pytest.approx(1)
    assert (out >= 0).all()
    last = int(bin_of(max(max_tokens, min(generated, 65_535) + 1)))
    assert out[last + 1 :].sum() == 0
    assert out[: int(bin_of(generated + 1))].sum() == 0


def test_conditioning_is_the_conditional_of_the_cdf() -> None:
    p = prior(PARAMS)
    g = 137
    out = conditioned(p[None], np.array([g]), np.array([1e9]))[0]
    cdf = np.cumsum(p)
    upper = 305
    k = int(bin_of(upper))
    exact_edge = float(np.cumsum(out)[k])
    before = cdf_at(cdf[None], np.array([float(g)]))[0]
    assert exact_edge == pytest.approx((cdf[k] - before) / (1 - before))
