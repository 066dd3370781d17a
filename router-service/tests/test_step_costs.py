"""What placement is told of an engine's speed: pooled by kind, its own once it has samples."""

import pytest

from paceline.common.v1.engine_pb2 import EngineCapabilities, EngineModel
from paceline_router.step_costs import BORROWED_SAMPLES, StepCostPool

CPU = EngineCapabilities(backend="llamacpp", build="1", device="cpu", model_hash="m", speed_factor=1)
SLOW = EngineCapabilities(backend="llamacpp", build="1", device="cpu", model_hash="m", speed_factor=2)
GPU = EngineCapabilities(backend="trtllm", build="1", device="A100-80", model_hash="m", speed_factor=1)


def fit(step_ms: float, samples: int) -> EngineModel:
    return EngineModel(a_ms=step_ms, b_ms=step_ms / 4, decode_samples=samples)


def test_engines_of_one_kind_look_alike_until_they_have_samples() -> None:
    pool = StepCostPool()
    pool.take("a", CPU, fit(10, 1000))
    noisy = dict(pool.take("b", CPU, fit(50, 2)))
    assert noisy["a_ms"] == pytest.approx(10, rel=0.05)
    fresh = dict(pool.take("c", CPU, EngineModel()))
    assert fresh["a_ms"] == pytest.approx(10, rel=0.02)
    assert fresh["a1_ms"] == pytest.approx(12.5, rel=0.02)


def test_own_samples_win_in_the_end() -> None:
    pool = StepCostPool()
    pool.take("a", CPU, fit(10, 1000))
    own = dict(pool.take("b", CPU, fit(50, int(BORROWED_SAMPLES) * 9)))
    assert own["a_ms"] > 40


def test_peers_are_scaled_by_the_declared_speed() -> None:
    pool = StepCostPool()
    pool.take("a", CPU, fit(10, 1000))
    assert dict(pool.take("b", SLOW, EngineModel()))["a_ms"] == pytest.approx(20, rel=0.02)


def test_other_kinds_lend_nothing_and_old_reports_are_replaced() -> None:
    pool = StepCostPool()
    for _ in range(50):
        pool.take("a", CPU, fit(10, 1000))
    pool.take("a", CPU, fit(30, 1000))
    assert dict(pool.take("b", CPU, EngineModel()))["a_ms"] == pytest.approx(30, rel=0.02)
    assert dict(pool.take("g", GPU, EngineModel()))["a_ms"] != pytest.approx(30, rel=0.2)
