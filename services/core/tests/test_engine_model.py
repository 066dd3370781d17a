"""The step-time model and its fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.engine_model import EngineModel, EngineModelFitter
from paceline_core.rls import BoundedRls

TRUE = EngineModel(a_ms=10, b_ms=0.8, c_ms=0.002, a1_ms=6, p0_ms=3, d_ms=0.9, e_ms=0.0004)


def feed(fitter, model, count, seed, noise=0.05):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        batch = int(rng.integers(1, 17))
        context = int(rng.integers(1, 500)) * batch
        fitter.observe_decode(batch, context, model.decode_ms(batch, context) * rng.lognormal(0, noise))
        tokens, before = int(rng.integers(1, 65)), int(rng.integers(0, 1500))
        fitter.observe_prefill(tokens, before, model.prefill_ms(tokens, before) * rng.lognormal(0, noise))


def worst_error(fitted, true):
    errors = [
        abs(fitted.decode_ms(b, c * b) / true.decode_ms(b, c * b) - 1)
        for b in (1, 2, 4, 8, 16)
        for c in (10, 200, 500)
    ]
    errors += [
        abs(fitted.prefill_ms(n, c) / true.prefill_ms(n, c) - 1) for n in (8, 32, 64) for c in (0, 700, 1400)
    ]
    return max(errors)


def test_formula_is_the_stated_one():
    assert TRUE.decode_ms(4, 1000) == pytest.approx(10 + 0.8 * 4 + 0.002 * 1000)
    assert TRUE.decode_ms(1, 1000) == pytest.approx(6 + 0.002 * 1000)
    assert TRUE.prefill_ms(64, 128) == pytest.approx(3 + 0.9 * 64 + 0.0004 * 64 * (128 + 32))
    assert TRUE.step_ms(4, 1000, 64, 128) == pytest.approx(TRUE.decode_ms(4, 1000) + TRUE.prefill_ms(64, 128))
    assert TRUE.decode_ms(0, 0) == TRUE.prefill_ms(0) == 0


def test_recovers_coefficients_from_nothing():
    fitter = EngineModelFitter()
    feed(fitter, TRUE, 600, seed=1)
    model = fitter.model
    for name in ("a_ms", "b_ms", "c_ms", "a1_ms", "p0_ms", "d_ms", "e_ms"):
        assert getattr(model, name) == pytest.approx(getattr(TRUE, name), rel=0.15), name
    assert worst_error(model, TRUE) < 0.03
    assert (model.decode_samples, model.prefill_samples) == (600, 600)


def test_follows_an_engine_that_slows_down():
    fitter = EngineModelFitter()
    feed(fitter, TRUE, 600, seed=1)
    slower = EngineModel(*(2 * v for v in (10, 0.8, 0.002, 6, 3, 0.9, 0.0004)))
    feed(fitter, slower, 2500, seed=2)
    assert worst_error(fitter.model, slower) < 0.1


def test_a_profile_is_used_at_once_and_given_up_when_wrong():
    fitter = EngineModelFitter(TRUE)
    assert fitter.model.decode_ms(8, 800) == TRUE.decode_ms(8, 800)
    wrong = EngineModel(*(3 * v for v in (10, 0.8, 0.002, 6, 3, 0.9, 0.0004)))
    feed(fitter, wrong, 2500, seed=3)
    assert worst_error(fitter.model, wrong) < 0.15


def test_without_excitation_it_stays_where_it_was():
    """One operating point for a long time must not change what is known of the others."""
    fitter = EngineModelFitter()
    feed(fitter, TRUE, 600, seed=1)
    before = worst_error(fitter.model, TRUE)
    rng = np.random.default_rng(4)
    for _ in range(20_000):
        fitter.observe_decode(4, 800, TRUE.decode_ms(4, 800) * rng.lognormal(0, 0.05))
    assert worst_error(fitter.model, TRUE) < before + 0.05


def test_a_few_absurd_steps_do_not_matter():
    fitter = EngineModelFitter()
    feed(fitter, TRUE, 400, seed=1)
    for _ in range(5):
        fitter.observe_decode(4, 800, 5_000.0)
    assert worst_error(fitter.model, TRUE) < 0.25
    feed(fitter, TRUE, 100, seed=5)
    assert worst_error(fitter.model, TRUE) < 0.1


def test_only_single_sequences_seen_say_something_about_batches():
    fitter = EngineModelFitter()
    for context in range(10, 400, 5):
        fitter.observe_decode(1, context, TRUE.decode_ms(1, context))
    model = fitter.model
    assert model.decode_ms(1, 100) == pytest.approx(TRUE.decode_ms(1, 100), rel=0.05)
    assert model.decode_ms(4, 400) >= model.decode_ms(1, 100) * 0.9
    assert not EngineModelFitter().model.known
    assert model.known


@given(
    samples=st.lists(
        st.tuples(
            st.integers(0, 256),
            st.integers(0, 10**6),
            st.floats(-1, 1e6, allow_nan=False) | st.sampled_from([float("inf"), float("nan"), 0.0]),
        ),
        max_size=300,
    )
)
@settings(max_examples=60, deadline=None)
def test_stays_bounded_whatever_comes(samples):
    fitter = EngineModelFitter()
    for batch, context, ms in samples:
        fitter.observe_decode(batch, context, ms)
        fitter.observe_prefill(batch, context, ms)
    model = fitter.model
    for name in ("a_ms", "b_ms", "c_ms", "a1_ms", "p0_ms", "d_ms", "e_ms"):
        value = getattr(model, name)
        assert np.isfinite(value)
        assert 0 <= value <= 10_000


def test_information_stays_bounded_over_a_long_run():
    rls = BoundedRls([0.0, 0.0], [10.0, 10.0], [100.0, 100.0], memory_samples=100)
    rng = np.random.default_rng(0)
    for _ in range(5_000):
        x = (1.0, float(rng.integers(1, 10)))
        rls.update(x, 3 * x[0] + 2 * x[1])
    assert rls.theta == pytest.approx([3, 2], rel=1e-3)
    assert np.linalg.eigvalsh(rls._information).max() < 1_000
    assert rls._information @ rls._covariance == pytest.approx(np.eye(2), abs=1e-3)
