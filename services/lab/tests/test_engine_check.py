"""Profiles against measurements: a set made of known rooflines gives back their overheads and errors."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from paceline_cli.commands.lab import app
from paceline_core.engines.roofline import step_ms
from paceline_core.engines.shipped import load_profile
from paceline_lab.engines.check import check_engines, latency_ms
from paceline_lab.engines.measured import BatchLatency

MODEL = "meta-llama/Meta-Llama-3-8B"


def write(path: Path, header: str, rows: list[str]) -> None:
    path.write_bytes(gzip.compress("\n".join([header, *rows]).encode()))


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    """H100 runs of an engine with an overhead of 1.7 ms, half of them 10 % slow, and A100 steps 25 % fast."""
    h100, a100 = load_profile("h100-8b"), load_profile("a100-80-8b")
    rows = []
    for batch in (1, 16, 64):
        for tokens in (128, 1024):
            point = BatchLatency("h100-8b", "vLLM", MODEL, batch, tokens, 0.0, 80e9)
            seconds = latency_ms(h100, point, 1.7) / 1e3 * (1.1 if batch == 64 else 1.0)
            rows.append(f"Nvidia H100 GPU,1,vLLM,{MODEL},{tokens},{batch},{seconds},0")
    rows.append(f"Nvidia H100 GPU,4,vLLM,{MODEL},128,1,99,0")
    header = "Hardware,Num of Hardware,Framework,Model,Input Output Length,Batch Size,Latency,Throughput"
    write(tmp_path / "llm_inference_bench_all.csv.gz", header, rows)
    name = "meta-llama/Meta-Llama-3.1-8B"
    grid = []
    for batch in (8, 256):
        ms = step_ms(a100, batch, batch * 512) / 1.25
        grid.append(f"a100_sxm,1.0.0,{name},1,decode,{batch},512,{ms}")
    mixed = step_ms(a100, 32, 32 * 1024, 256, 256**2 / 2)
    grid.append(f"a100_sxm,1.0.0,{name},1,mixed_chunk+dec@1024,256,32,{mixed}")
    grid.append(f"a100_sxm,1.0.0,{name},1,prefill_b1,1,2048,{step_ms(a100, 0, 0, 2048, 2048**2 / 2)}")
    grid.append(f"b200_sxm,1.0.0,{name},1,decode,8,512,1")
    header = "gpu,trtllm_db_version,model,tp,kind,batch_or_chunk,ctx_tokens,ms"
    write(tmp_path / "aiconfigurator_trtllm_grid.csv.gz", header, grid)
    return tmp_path


def test_errors_are_those_that_were_put_in(measurements: Path) -> None:
    report = check_engines(measurements)
    assert report["measured_batch_latencies"]["points"] == 6
    h100 = report["measured_batch_latencies"]["by_gpu"]["h100-8b"]
    assert h100["runs"][0]["overhead_ms"] == 1.7
    assert h100["runs"][0]["extrapolated"] == 0
    assert h100["median_error"] == pytest.approx(0.0, abs=1e-3)
    assert h100["p90_error_kv_fits"] == pytest.approx(1 - 1 / 1.1, rel=0.01)
    assert h100["median_error_shipped_overhead"] > 0.02
    a100 = report["modelled_steps"]["by_gpu"]["a100-80-8b"]
    assert a100["decode"]["median_bias"] == pytest.approx(0.25)
    assert a100["decode, extrapolated"]["points"] == 1
    assert a100["mixed"]["median_error"] == a100["prefill"]["median_error"] == 0
    assert {"l4-8b", "a40-8b", "v100-32-8b"} <= set(report["not_checked"])


def test_the_command_prints_json_and_says_what_is_missing(measurements: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["engines", "--data", str(measurements), "--json"])
    assert shown.exit_code == 0
    document = json.loads(shown.stdout)
    assert document["profiles"]["h100-8b"]["tflops"] == 560
    assert document["machine"]["cores"] >= 1
    table = CliRunner().invoke(app, ["engines", "--data", str(measurements)])
    assert "shipped overhead" in table.stdout
    missing = CliRunner().invoke(app, ["engines", "--data", str(tmp_path / "nothing")])
    assert missing.exit_code != 0
    assert "gpu-perf" in str(missing.exception)


def test_kv_that_does_not_fit_is_told() -> None:
    assert BatchLatency("a100-80-8b", "vLLM", MODEL, 32, 1024, 1.0, 40e9).kv_fits
    assert not BatchLatency("a100-80-8b", "vLLM", MODEL, 64, 2048, 1.0, 40e9).kv_fits
    longer = [
        latency_ms(load_profile("a100-80-8b"), BatchLatency("a100-80-8b", "vLLM", MODEL, b, 256, 1.0, 40e9))
        for b in (1, 16, 64)
    ]
    assert np.all(np.diff(longer) > 0)
