"""The online learner of lengths: always distributions, calibrated where a base is not, bounded and restorable."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.calibration.offset import ShippedOffsets, log_moments, stretched
from paceline_core.calibration.online import CalibrationParams, OnlineLengths
from paceline_core.calibration.recalibration import LEVELS, PIT_BINS, pit_map, recalibrated
from paceline_core.histogram import HistogramParams
from paceline_core.lengths import OPEN_EDGE, UPPER, K, cdf_from_probabilities, conditioned, quantile
from paceline_core.saved_state import StateError

NONE = np.zeros(1)
KEY = [("m", "a")]


def lognormal(median: float, sigma: float, rows: int = 1) -> np.ndarray:
    """Bin masses of a log-normal length, float64[rows, K]."""
    z = np.log(UPPER / median) / (sigma * math.sqrt(2))
    cdf = np.array([(1 + math.erf(x)) / 2 for x in z])
    cdf[-1] = 1.0
    return np.repeat(np.diff(cdf, prepend=0.0)[None], rows, axis=0)


def draws(seed: int, n: int, median: float, sigma: float) -> np.ndarray:
    return np.maximum(1, np.round(np.random.default_rng(seed).lognormal(np.log(median), sigma, n)))


def learn(
    learner: OnlineLengths,
    base: np.ndarray,
    lengths: np.ndarray,
    key: tuple[str, str] = KEY[0],
    limit: float = 0,
) -> None:
    """One outcome after the other, cut at `limit`."""
    cut = (lengths > limit) if limit else np.zeros(len(lengths), dtype=bool)
    n = len(lengths)
    learner.observe(
        np.repeat(base, n, axis=0),
        [key] * n,
        np.zeros(n),
        np.where(cut, limit, lengths),
        cut,
        np.full(n, limit),
    )


def quantiles(
    learner: OnlineLengths, base: np.ndarray, key: tuple[str, str] = KEY[0], out: float = 0.0
) -> np.ndarray:
    """P50, P90, P95 as a reader sees them."""
    g = np.array([out])
    answer = learner.refine(base, [key], g).probabilities
    cdf = cdf_from_probabilities(conditioned(answer, g, np.array([OPEN_EDGE])))
    return np.array([quantile(cdf, level, g, np.array([OPEN_EDGE]))[0] for level in LEVELS])


def test_nothing_learned_answers_nearly_with_the_base() -> None:
    base = lognormal(300, 0.6)
    answer = OnlineLengths().refine(base, KEY, NONE)
    before = quantile(cdf_from_probabilities(base), 0.5, NONE, np.array([OPEN_EDGE]))[0]
    assert quantiles(OnlineLengths(), base)[0] == pytest.approx(before, rel=0.1)
    assert not answer.from_histogram[0]
    assert answer.coverage_p90[0] == 0.0


@pytest.mark.parametrize(
    ("median", "sigma", "said", "said_sigma"),
    [(900, 0.5, 150, 0.5), (60, 0.9, 400, 0.4), (300, 0.4, 300, 1.2)],
)
def test_a_wrong_base_covers_what_it_says_after_some_outcomes(
    median: float, sigma: float, said: float, said_sigma: float
) -> None:
    """100 orders at once, each a fleet of its own: coverage of what is said after 20, and after 150 outcomes."""
    worlds = list(range(100))
    learner = OnlineLengths(CalibrationParams(max_worlds=100))
    lengths = draws(1, 100 * 150, median, sigma).reshape(150, 100)
    base, keys, uncut = lognormal(said, said_sigma, 100), KEY * 100, np.zeros(100, dtype=bool)
    truth = draws(2, 20_000, median, sigma)
    for number, row in enumerate(lengths, start=1):
        learner.observe(base, keys, np.zeros(100), row, uncut, worlds=worlds)
        if number in (20, 150):
            cdf = cdf_from_probabilities(learner.refine(base, keys, np.zeros(100), worlds).probabilities)
            for level in LEVELS:
                bounds = quantile(cdf, float(level), np.zeros(100), np.full(100, OPEN_EDGE))
                covered = np.mean([(truth <= bound).mean() for bound in bounds])
                assert covered == pytest.approx(level, abs=0.05 if number == 20 else 0.02)


def test_the_histogram_takes_over_from_a_base_that_misses() -> None:
    """Two kinds of answers, and a base that always expects the wrong one."""
    learner = OnlineLengths()
    lengths = draws(3, 200, 20, 0.2)
    lengths[::2] = draws(4, 100, 2_000, 0.2)
    for number, length in enumerate(lengths):
        learn(learner, lognormal(2_000 if number % 2 else 20, 0.2), np.array([length]))
    assert learner.refine(lognormal(20, 0.2), KEY, NONE).from_histogram[0]


def test_without_a_base_the_histogram_answers_alone() -> None:
    learner = OnlineLengths()
    nothing = np.full((1, K), np.nan)
    for length in draws(5, 150, 80, 0.4):
        learner.observe(nothing, KEY, NONE, np.array([length]), np.array([False]), usable=np.array([False]))
    answer = learner.refine(nothing, KEY, NONE, usable=np.array([False]))
    assert answer.from_histogram[0]
    cdf = cdf_from_probabilities(answer.probabilities)
    assert quantile(cdf, 0.5, NONE, np.array([OPEN_EDGE]))[0] == pytest.approx(80, rel=0.2)


def test_cut_answers_do_not_look_short() -> None:
    learner, base = OnlineLengths(), lognormal(300, 0.6)
    learn(learner, base, draws(6, 400, 300, 0.6), limit=128)
    assert quantiles(learner, base)[0] > 200
    shorter = OnlineLengths()
    learn(shorter, base, np.minimum(draws(6, 400, 300, 0.6), 128))
    assert quantiles(shorter, base)[0] < 140


def test_a_new_app_begins_with_the_offset_of_its_model() -> None:
    learner, base = OnlineLengths(), lognormal(200, 0.5)
    learn(learner, base, draws(7, 100, 1_000, 0.5), ("long", "known"))
    learn(learner, base, draws(8, 100, 40, 0.5), ("short", "known"))
    assert quantiles(learner, base, ("long", "new"))[0] > 600
    assert quantiles(learner, base, ("short", "new"))[0] < 80


def test_shipped_offsets_hold_until_outcomes_say_otherwise() -> None:
    shipped = ShippedOffsets.parse({"m": {"log": 1.0, "outcomes": 500, "apps": {"b": [2.0, 300]}}})
    learner, base = OnlineLengths(offsets=shipped), lognormal(100, 0.4)
    assert quantiles(learner, base)[0] == pytest.approx(100 * math.e, rel=0.15)
    assert quantiles(learner, base, ("m", "b"))[0] == pytest.approx(100 * math.e**2, rel=0.15)
    learn(learner, base, draws(10, 300, 100, 0.4), ("m", "b"))
    assert quantiles(learner, base, ("m", "b"))[0] == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize(
    "document", [{"m": 3}, {"m": {"log": "x", "outcomes": 1}}, {"m": {"log": math.nan, "outcomes": 1}}]
)
def test_absurd_offsets_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="offset"):
        ShippedOffsets.parse(document)


def test_progress_buckets_learn_apart() -> None:
    """Right at arrival, three times too short once 300 tokens are out."""
    learner, base = OnlineLengths(), lognormal(400, 0.3)
    for length in draws(11, 200, 400, 0.3):
        learn(learner, base, np.array([length]))
        late = lognormal(500, 0.2)
        learner.observe(late, KEY, np.array([300.0]), np.array([300 + 3 * length]), np.array([False]))
    assert quantiles(learner, base)[0] == pytest.approx(400, rel=0.15)
    assert quantiles(learner, lognormal(500, 0.2), out=300.0)[0] > 700


def test_a_bound_that_the_limit_clips_is_scored_by_how_often_answers_are_cut() -> None:
    """Right forecasts cover what they say though all answers are cut or half of them; short ones are found out."""
    for limit, median in ((64, 1_000), (400, 400)):
        learner = OnlineLengths()
        learn(learner, lognormal(median, 0.5), draws(12, 300, median, 0.5), limit=limit)
        assert learner.report("m", "a").coverage == pytest.approx(LEVELS, abs=0.06)
    learner = OnlineLengths()
    learn(learner, lognormal(100, 0.3), draws(12, 1, 1_000, 0.3), limit=300)
    assert learner.report("m", "a").coverage[1] < 0.1


def test_what_was_promised_is_scored_where_the_limit_left_it_whole() -> None:
    learner, base = OnlineLengths(), lognormal(1_000, 0.5)
    declared = np.array([[30.0, 60.0, np.nan]])
    for length in (20.0, 62.0):
        learner.observe(base, KEY, NONE, np.array([length]), np.array([False]), np.array([64.0]), declared)
    assert learner.report("m", "a").coverage[1] == pytest.approx(0.5, abs=0.01)


def test_drift_is_seen_and_ends() -> None:
    learner, base = OnlineLengths(), lognormal(200, 0.4)
    learn(learner, base, draws(13, 200, 200, 0.4))
    assert learner.report().alarm == ""
    promised = np.repeat(np.array([[20.0, 40.0, 45.0]]), 60, axis=0)
    learner.observe(
        np.repeat(base, 60, axis=0), KEY * 60, np.zeros(60), draws(14, 60, 200, 0.4), np.zeros(60, dtype=bool),
        declared=promised,
    )  # fmt: skip
    assert "P90 covers only" in learner.report("m").alarm
    learn(learner, base, draws(15, 600, 200, 0.4))
    report = learner.report("m", "a")
    assert report.alarm == ""
    assert report.coverage == pytest.approx(LEVELS, abs=0.06)
    assert report.pit == pytest.approx([0.1] * 10, abs=0.06)
    assert abs(report.bias) < 0.1


ABSURD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.just(-1.0), st.just(0.0), st.just(1e300)
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(ABSURD, ABSURD, st.booleans(), ABSURD, ABSURD), max_size=6))
def test_answers_are_distributions_whatever_was_observed(
    seed: int, absurd: list[tuple[float, float, bool, float, float]]
) -> None:
    rng = np.random.default_rng(seed)
    learner = OnlineLengths()
    base = rng.gamma(rng.choice([0.02, 0.3, 5.0]), size=(len(absurd) + 1, K)) + 1e-200
    for i, (length, out, cut, limit, declared) in enumerate(absurd):
        learner.observe(
            base[i : i + 1], KEY, np.array([out]), np.array([length]), np.array([cut]), np.array([limit]),
            np.array([[declared] * 3]),
        )  # fmt: skip
    for out in (0.0, 49.0, 50.0, 70_000.0):
        answer = learner.refine(base[-1:], KEY, np.array([out]))
        assert np.isfinite(answer.probabilities).all()
        assert (answer.probabilities >= 0).all()
        assert answer.probabilities.sum() == pytest.approx(1.0)
        three = quantiles(learner, base[-1:], out=out)
        assert (np.diff(three) >= 0).all()
        assert (three > out).all() or out > OPEN_EDGE - 2
    assert learner.refine(base[-1:], KEY, np.array([np.nan])).probabilities.sum() == pytest.approx(1.0), (
        "nan reads as nothing out"
    )
    OnlineLengths.from_bytes(learner.to_bytes())


def test_a_base_row_that_is_no_distribution_is_refused_or_passed_over() -> None:
    learner = OnlineLengths()
    for bad in (np.full((1, K), np.nan), np.zeros((1, K)), -np.ones((1, K))):
        with pytest.raises(ValueError, match="bin masses"):
            learner.refine(bad, KEY, NONE)
        learner.observe(bad, KEY, NONE, np.array([10.0]), np.array([False]))
    assert learner.observed == 0


@given(st.integers(0, 2**32))
def test_the_map_is_monotone_from_0_to_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = pit_map(rng.gamma(0.2, size=(5, PIT_BINS)) + 1e-12, rng.uniform(-1, 1, (5, 3)))
    values = recalibrated(np.repeat(np.linspace(0, 1, 101)[None], 5, axis=0), table)
    assert (np.diff(values, axis=1) >= -1e-12).all()
    assert values[:, 0] == pytest.approx(0)
    assert values[:, -1] == pytest.approx(1)


@given(st.floats(-3, 3), st.floats(0.4, 2.5))
def test_stretching_moves_mean_and_spread_of_the_logarithm(offset: float, scale: float) -> None:
    base = lognormal(300, 0.5)
    mean, variance = log_moments(base)
    out = stretched(base, mean, np.array([offset]), np.array([scale]))
    assert out.sum() == pytest.approx(1)
    assert (out >= 0).all()
    after, spread = log_moments(out)
    assert after[0] - mean[0] == pytest.approx(offset, abs=0.12)
    if abs(offset) < 1.5 and scale < 1.5:
        assert np.sqrt(spread[0] / variance[0]) == pytest.approx(scale, rel=0.15)


SMALL = CalibrationParams(histogram=HistogramParams(max_models=3, max_keys=5))


def busy(rounds: int, learner: OnlineLengths, seed: int = 16) -> OnlineLengths:
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        key = (f"m{rng.integers(4)}", f"a{rng.integers(4)}")
        out = float(rng.choice([0, 0, 60]))
        base = lognormal(100, 0.5)
        learner.observe(
            base, [key], np.array([out]), np.array([out + rng.integers(1, 900)]), rng.random(1) < 0.2
        )
    return learner


def test_keys_are_bounded() -> None:
    learner = busy(300, OnlineLengths(SMALL))
    assert len(learner.keys) == 5
    assert learner.observed == 300
    assert len(learner.to_bytes()) < 100_000
    for i in range(600):
        learner.refine(lognormal(100, 0.5), [(f"x{i}", "y")], NONE)
    assert len(learner.keys) == 5, "asking is not remembered"


def test_state_survives_and_learning_goes_on_as_if_nothing_had_happened() -> None:
    whole, first = busy(40, OnlineLengths(SMALL)), busy(40, OnlineLengths(SMALL))
    second = OnlineLengths.from_bytes(first.to_bytes(), SMALL)
    for learner in (whole, second):
        busy(40, learner, seed=17)
    assert second.to_bytes() == whole.to_bytes()
    keys = [(f"m{i}", f"a{j}") for i in range(4) for j in range(4)]
    base = lognormal(100, 0.5, len(keys))
    one, other = (learner.refine(base, keys, np.zeros(len(keys))) for learner in (whole, second))
    assert (one.probabilities == other.probabilities).all()
    assert one.coverage_p90.tolist() == other.coverage_p90.tolist()


def test_damaged_state_is_refused() -> None:
    state = busy(30, OnlineLengths()).to_bytes()
    for damaged in (b"", b"garbage", state[:-1], b"PLH1" + state[4:], state[:-9] + b"x" + state[-8:]):
        with pytest.raises(StateError):
            OnlineLengths.from_bytes(damaged)


def test_fewer_keys_than_were_saved_keeps_the_latest() -> None:
    learner = OnlineLengths()
    for i in range(20):
        learn(learner, lognormal(100, 0.5), np.array([10.0]), ("m", f"a{i}"))
    small = OnlineLengths.from_bytes(learner.to_bytes(), SMALL)
    assert small.keys == [("m", f"a{i}") for i in range(15, 20)]


def test_a_batch_answers_like_single_questions_and_worlds_do_not_mix() -> None:
    params = CalibrationParams(max_worlds=2)
    both, alone = OnlineLengths(params), busy(60, OnlineLengths(params))
    rng = np.random.default_rng(16)
    for _ in range(60):
        key = (f"m{rng.integers(4)}", f"a{rng.integers(4)}")
        out = float(rng.choice([0, 0, 60]))
        length, cut = np.array([out + rng.integers(1, 900)]), rng.random(1) < 0.2
        rows = (np.repeat(lognormal(100, 0.5), 2, axis=0), [key, key], np.array([out, out]))
        both.observe(*rows, np.append(length, 7.0 + out), np.append(cut, False), worlds=[0, 1])
    keys = [(f"m{i % 4}", f"a{i % 3}") for i in range(12)]
    base, out_of = lognormal(150, 0.7, 12), np.array([0.0, 10.0, 55.0] * 4)
    batch = both.refine(base, keys, out_of, [0] * 12).probabilities
    for i in range(12):
        single = alone.refine(base[i : i + 1], keys[i : i + 1], out_of[i : i + 1]).probabilities[0]
        assert batch[i] == pytest.approx(single, abs=1e-9)
    assert not np.allclose(both.refine(base, keys, out_of, [1] * 12).probabilities, batch)
