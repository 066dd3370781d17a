"""The benchmark of predictions runs, and names the figures it is asked for. What they are is for a quiet machine."""

import os
from pathlib import Path

from tiny_length_model import tiny_length_model

from paceline_lab.bench.predictor import PredictorPlan, bench_questions, measure_in_process
from paceline_lab.bench.predictor_calls import measure_calls
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config

PLAN = PredictorPlan(
    single_rounds=20,
    batch_rounds=8,
    refine_rounds=5,
    rate_per_s=50,
    open_loop_s=0.4,
    batched_s=0.3,
    warmup_s=0.1,
)


async def test_all_figures_come_out(tmp_path: Path) -> None:
    file = tiny_length_model(tmp_path / "length.onnx")
    told: list[str] = []
    figures = await measure_in_process(PLAN, str(file), told.append)
    section = {"listen": "127.0.0.1:0", "length_model": str(file)}
    config = Config.model_validate({"predictor": section, "store": {"url": ""}})
    async with PredictorApp(config) as app:
        figures |= await measure_calls(PLAN, app.address, os.getpid(), told.append)
    for name in (
        "single_ms_p50", "single_ms_p99", "batch64_ms_p50", "refine_256_ms_p50", "refine_10k_ms_p50", "grpc_qps",
        "grpc_ms_p50", "grpc_ms_p99", "grpc_batched_qps", "grpc_null_qps", "grpc_null_ms_p99", "grpc_null_most_qps",
        "model_bytes", "service_rss_mb",
    ):  # fmt: skip
        assert figures[name] > 0, name
    assert (figures["model_kind"], figures["model_version"], figures["grpc_failed"]) == ("qrf", "tiny-1", 0)
    assert figures["grpc_qps"] <= 50
    assert len(told) == 4


def test_questions_follow_the_seed_and_no_two_are_alike() -> None:
    assert bench_questions(1, 50) == bench_questions(1, 50)
    assert bench_questions(1, 50) != bench_questions(2, 50)
    assert len({question.prompt_head for question in bench_questions(1, 500)}) == 500
