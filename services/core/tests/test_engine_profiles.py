"""Engine profiles: files, linear times, roofline and its closed form."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.engines.profile import UnknownProfileError, linear_of
from paceline_core.engines.roofline import step_ms, step_times
from paceline_core.engines.shipped import load_profile, profile_names

GPUS = ["a100-80-8b", "a40-8b", "h100-8b", "h200-8b", "l4-8b", "l40s-8b", "v100-32-8b"]


def test_every_promised_engine_ships_with_numbers_and_their_source() -> None:
    assert profile_names() == sorted([*GPUS, "cpu-smollm2"])
    for name in profile_names():
        profile = load_profile(name)
        assert len(profile.source) > 40
        assert profile.model.known
        assert profile.kv_capacity_tokens > 10_000
        assert (profile.roofline is None) == (name == "cpu-smollm2")


def test_the_linear_numbers_in_a_file_are_those_of_its_roofline() -> None:
    for name in GPUS:
        profile = load_profile(name)
        assert profile.roofline is not None
        for field, value in linear_of(profile.roofline, profile.kv_bytes_per_token).items():
            assert getattr(profile, field) == pytest.approx(value, rel=1e-3), (name, field)


def test_capability_is_not_one_number() -> None:
    v100, a40 = load_profile("v100-32-8b"), load_profile("a40-8b")
    assert step_ms(v100, 16, 8000) < step_ms(a40, 16, 8000)
    assert step_ms(v100, 0, 0, 2048, 2048**2 / 2) > step_ms(a40, 0, 0, 2048, 2048**2 / 2)
    order = [
        float(step_ms(load_profile(n), 32, 32_000)) for n in ("h200-8b", "h100-8b", "a100-80-8b", "l4-8b")
    ]
    assert order == sorted(order)


def test_the_linear_model_starts_a_scheduler_near_the_truth() -> None:
    batch = np.array([1, 4, 16, 32, 64])
    for name in GPUS:
        profile = load_profile(name)
        truth = step_ms(profile, batch, batch * 800)
        start = np.array([profile.model.decode_ms(b, b * 800) for b in batch])
        assert np.abs(start / truth - 1).max() < 0.05, name
        alone = float(step_ms(profile, 0, 0, 2048, 2048**2 / 2))
        assert profile.model.prefill_ms(2048) == pytest.approx(alone, rel=0.05)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from([*GPUS, "cpu-smollm2"]),
    batch=st.integers(1, 600),
    mean_context=st.integers(1, 4000),
    steps=st.integers(1, 300),
)
def test_many_steps_in_one_sum_equal_step_by_step(
    name: str, batch: int, mean_context: int, steps: int
) -> None:
    profile = load_profile(name)
    times = step_times(profile)
    context = batch * mean_context
    contexts = context + batch * np.arange(steps)
    each = step_ms(profile, np.full(steps, batch), contexts)
    assert times.decode_run_ms(batch, context, steps) == pytest.approx(each.sum(), rel=1e-9)
    assert [times.step_ms(batch, c) for c in contexts[:5]] == pytest.approx(each[:5].tolist())
    budget = float(each.sum()) * 0.6
    fit = times.decode_steps_within(batch, context, budget, steps)
    assert fit == np.searchsorted(each.cumsum(), budget, side="right")


def test_a_step_is_bound_by_memory_until_prefill_bounds_it_by_compute() -> None:
    profile = load_profile("a100-80-8b")
    assert profile.roofline is not None
    decode = step_ms(profile, 32, 32_000)
    ridden = step_ms(profile, 32, 32_000, np.array([16, 64, 512]), np.array([128, 2048, 512**2 / 2]))
    assert ridden[0] == pytest.approx(decode, rel=0.001)
    assert ridden[2] > 2.5 * decode
    assert np.all(np.diff(ridden) > 0)
    reading = step_ms(profile, 0, 0, 16, 16 * 30_000, 30_000) - step_ms(profile, 0, 0, 16, 16 * 30_000)
    assert reading == pytest.approx(30_000 * 131072 / profile.roofline.bytes_per_s * 1e3)


def test_an_empty_step_takes_no_time() -> None:
    for name in ("a100-80-8b", "cpu-smollm2"):
        profile = load_profile(name)
        assert step_ms(profile, np.zeros(3), 0).tolist() == [0, 0, 0]
        times = step_times(profile)
        assert times.step_ms(0, 0) == times.decode_run_ms(0, 0, 5) == times.decode_run_ms(3, 9, 0) == 0


def test_scaled_and_perturbed_engines() -> None:
    profile = load_profile("h100-8b")
    slow = profile.scaled(2.0)
    assert step_ms(slow, 8, 9000, 300, 45_000) == pytest.approx(2 * step_ms(profile, 8, 9000, 300, 45_000))
    assert slow.model.decode_ms(8, 9000) == pytest.approx(2 * profile.model.decode_ms(8, 9000))
    wide = profile.perturbed(bytes_factor=1.2)
    assert wide.a_ms < profile.a_ms
    assert step_ms(wide, 8, 9000) < step_ms(profile, 8, 9000)
    assert step_ms(wide, 0, 0, 4096, 0) == step_ms(profile, 0, 0, 4096, 0)
    with pytest.raises(UnknownProfileError, match="no roofline"):
        load_profile("cpu-smollm2").perturbed(1.2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("speed: 3", "speed"),
        ("a_ms: fast", "not a number"),
        ("a_ms: -1", "at least 0"),
        ("roofline: {parameters: 1}", "flops_per_s"),
        ("roofline: 3", "not a mapping"),
    ],
)
def test_a_profile_with_a_wrong_line_is_refused(tmp_path: Path, line: str, says: str) -> None:
    lines = ["device: test", "a_ms: 10", "b_ms: 0", "c_ms: 0", "a1_ms: 0", "p0_ms: 1", "d_ms: 0", "e_ms: 0"]
    lines += ["kv_capacity_tokens: 10000", "kv_bytes_per_token: 1", "run_set_change_cost_ms: 5"]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines))
    assert load_profile(str(path)).decode_ms(4, 100) == 10
    path.write_text("\n".join([kept for kept in lines if kept.split(":")[0] != line.split(":")[0]] + [line]))
    with pytest.raises(UnknownProfileError, match=says):
        load_profile(str(path))
    path.write_text("a: [")
    with pytest.raises(UnknownProfileError, match="not YAML"):
        load_profile(str(path))
