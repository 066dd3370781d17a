"""A service as a process: command line, config faults, logs, signals, exit codes."""

import asyncio
import io
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline_runtime import rpc_context
from paceline_runtime.channel import channel
from paceline_runtime.logs import ConsoleFormatter, JsonFormatter, LogConfig, setup_logging

WAIT_S = 300.0

SERVICE = '''
import asyncio, sys
from paceline_runtime.config_model import ConfigError, ConfigModel
from paceline_runtime.server import Server, ServerConfig
from paceline_runtime.service import Process, ServiceConfig, run_service

class DemoConfig(ConfigModel):
    server: ServerConfig = ServerConfig()
    """Its server."""
    fail: bool = False
    """Fail at once."""
    fail_in_group: bool = False
    """Fail with an unusable configuration, in a task group."""

class Config(ServiceConfig):
    demo: DemoConfig = DemoConfig()
    """The demo."""

async def refuse() -> None:
    raise ConfigError(["demo.server: no"])

async def run(config: Config, process: Process) -> None:
    if config.demo.fail:
        raise RuntimeError("told to fail")
    if config.demo.fail_in_group:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
    server = Server(config.demo.server, tls=config.tls, auth=config.auth, telemetry=process.telemetry)
    await server.serve(process.shutdown)

sys.exit(run_service("demo", Config, run))
'''


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "demo.py"
    path.write_text(SERVICE)
    return path


def run(script: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True, timeout=WAIT_S)


def test_help_shows_the_keys(script):
    done = run(script, "--help")
    assert done.returncode == 0
    assert "demo.server.listen  (text; default 127.0.0.1:0)" in done.stdout
    assert "Least severe level that is logged." in done.stdout


def test_config_faults_end_with_code_2(script):
    done = run(script, "--set", "demo.sever.listen=x")
    assert done.returncode == 2
    assert "demo.sever: unknown key; did you mean 'server'?" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(script, "--set", "demo.server.listen=0.0.0.0:0")
    assert done.returncode == 2
    assert "auth.tokens" in done.stderr
    done = run(script, "--set", "demo.fail_in_group=true")
    assert done.returncode == 2
    assert "demo.server: no" in done.stderr


def test_failure_ends_with_code_1_and_a_log(script):
    done = run(script, "--set", "demo.fail=true")
    assert done.returncode == 1
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert entries[-1]["message"] == "the service failed"
    assert "told to fail" in entries[-1]["exception"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_gracefully(script, tmp_path, number):
    address_file = tmp_path / "address"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        "--set",
        f"demo.server.address_file={address_file}",
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines = []
    async with asyncio.timeout(WAIT_S):
        while not lines or lines[-1]["message"] != "listening":
            lines.append(json.loads(await process.stderr.readline()))
        async with channel(address_file.read_text()) as opened:
            stub = health_pb2_grpc.HealthStub(opened)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
            while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass
            process.send_signal(number)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            # An open health watch must not hold up the end.
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await watch.read()
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await process.wait() == 0
        rest = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
    assert rest[-1]["message"] == "ended"
    assert rest[-1]["shutdown_reason"] == number.name
    assert not address_file.exists()


def test_json_logs_carry_the_request():
    formatter = JsonFormatter("demo")
    record = logging.getLogger("x").makeRecord(
        "x", 20, "f", 1, "hello %s", ("you",), None, extra={"engine": "e1"}
    )
    with rpc_context.bound(request_id="r1", tenant="acme"):
        entry = json.loads(formatter.format(record))
        line = ConsoleFormatter("demo").format(record)
    assert entry["message"] == "hello you"
    assert (entry["request_id"], entry["tenant"], entry["engine"]) == ("r1", "acme", "e1")
    assert line.endswith("hello you request_id=r1 tenant=acme engine=e1")
    assert "request_id" not in json.loads(formatter.format(record))


def test_format_follows_the_stream():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        stream = io.StringIO()
        setup_logging(LogConfig(level="warning"), "demo", stream)
        logging.getLogger("a").info("hidden")
        logging.getLogger("a").warning("shown")
        assert json.loads(stream.getvalue())["message"] == "shown"
    finally:
        root.handlers[:], level = before
        root.setLevel(level)


async def test_context_reaches_tasks_and_ends_with_the_block():
    async def read():
        return rpc_context.request_id(), rpc_context.tenant()

    with rpc_context.bound(request_id="r1"):
        task = asyncio.create_task(read())
        with rpc_context.bound(tenant="t"):
            assert await read() == ("r1", "t")
    assert await task == ("r1", "")
    assert await read() == ("", "")
