"""The executor as a process: it says where it is, serves, ends on request, and refuses bad configuration."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.executor.v1 import executor_pb2
from paceline_executor.config import ExecutorServiceConfig
from paceline_runtime.config_docs import undocumented_keys

PATIENCE_S = 300.0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    where = tmp_path / "address"
    config = tmp_path / "paceline.yaml"
    config.write_text(
        "executor:\n  backend: simulated\n  listen: 127.0.0.1:0\n  engine_id: sim-7\nrouter:\n  listen: x\n"
    )
    command = [sys.executable, "-m", "paceline_executor", "--config", str(config)]
    command += ["--set", f"executor.server.address_file={where}"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not where.exists():
            assert child.poll() is None, "it ended at once"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield child, where.read_text()
    finally:
        child.kill()
        child.wait()


def test_serves_and_ends_on_request(process: tuple[subprocess.Popen[bytes], str]) -> None:
    child, address = process
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("liveness", "readiness", "paceline.executor.v1.ExecutorService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = channel.unary_unary(
            "/paceline.executor.v1.ExecutorService/GetCapabilities",
            executor_pb2.GetCapabilitiesRequest.SerializeToString,
            executor_pb2.GetCapabilitiesResponse.FromString,
        )
        answer = ask(executor_pb2.GetCapabilitiesRequest(), timeout=PATIENCE_S)
        assert answer.identity.engine_id == "sim-7"
        assert answer.capabilities.backend == "simulated"
    child.send_signal(signal.SIGTERM)
    assert child.wait(PATIENCE_S) == 0


BAD_SETTINGS = [
    ["executor.max_batches=3"],
    ["executor.backend=simulated", "executor.simulated.profile=abacus"],
    ["executor.model_path=tiny", "executor.speed_factor=0.5"],
]


@pytest.mark.parametrize("settings", BAD_SETTINGS)
def test_bad_settings_are_refused_with_their_name(settings: list[str]) -> None:
    command = [sys.executable, "-m", "paceline_executor", "--set", "executor.listen=127.0.0.1:0"]
    for setting in settings:
        command += ["--set", setting]
    run = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert run.returncode == 2
    assert b"executor" in run.stderr
    assert b"Traceback" not in run.stderr


def test_every_key_is_documented() -> None:
    assert undocumented_keys(ExecutorServiceConfig) == []
