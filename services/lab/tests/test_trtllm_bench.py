"""The benchmark of the agent, small: its shape, and what does not depend on the machine."""

import pytest

from paceline_lab.bench.trtllm import TrtllmPlan, bench_trtllm


@pytest.mark.parametrize("mode", ["frame", "plan"])
def test_emulated_figures_keep_their_promises(mode: str) -> None:
    plan = TrtllmPlan(mode=mode, batch=8, requests=20, prompt_tokens=64, output_tokens=64, rounds=1)
    result = bench_trtllm(plan, lambda _: None)
    assert result["emulated"] is True
    assert result["throughput_ratio"] >= 0.95
    assert result["resume_ratio"] <= 1.1
    assert result["abort_iterations"] <= 2
    assert result["resumes"] > 0
