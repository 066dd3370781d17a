"""A whole stack of real processes with simulated engines: calls, a kill -9, status, a clean end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from paceline_cli.commands.status import _gather
from paceline_cli.stack.child import ChildState
from paceline_cli.stack.private import private_stack
from paceline_cli.stack.run import RunningStack
from paceline_cli.target import Target
from paceline_core.slo import Slo, SloClass
from paceline_lab.live.client import CallResult, CallSpec, Client
from paceline_lab.live.http_client import HttpClient
from paceline_lab.live.session_client import SessionClient
from paceline_lab.prompts.model import Message

SIMULATED = ("executor.backend=simulated", "executor.simulated.time_scale=0.05")
LIMIT_S = 180.0
"""Of what takes seconds on a quiet machine: a process takes seconds of CPU time to begin, and may get little of it."""


async def ask(client: Client, request_id: str, slo: Slo | None = None) -> CallResult:
    result = CallResult()
    spec = CallSpec(request_id, (Message("user", "What is a queue?"),), 12, slo, "test")
    async with asyncio.timeout(LIMIT_S):
        await client.call(spec, result)
    return result


async def killed_and_back(stack: RunningStack, name: str) -> tuple[int, int]:
    (child,) = (child for child in stack.supervisor.children if child.spec.name == name)
    killed = child.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(LIMIT_S):
        while child.pid in (None, killed) or child.state is not ChildState.READY:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    reborn = child.pid
    assert reborn is not None
    return killed, reborn


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
async def test_private_stack_answers_survives_a_kill_and_leaves_nothing() -> None:
    async with private_stack(overrides=SIMULATED) as stack:
        pids = [child.pid for child in stack.supervisor.children]
        at = stack.addresses
        async with (
            SessionClient(at.router) as grpc_client,
            HttpClient(at.gateway, model="simulated") as http_client,
        ):
            over_grpc = await ask(grpc_client, "e2e-1", Slo(SloClass.LATENCY, ttft_ms=60_000, tbt_ms=60_000))
            over_http = await ask(http_client, "e2e-2", Slo(SloClass.DEADLINE, e2e_ms=60_000))
            for result in (over_grpc, over_http):
                assert (result.error, result.ended_well) == ("", True)
                assert len(result.token_s) == 12 or result.finish == "stop"
                assert result.prompt_tokens > 0
                assert result.engine_id.startswith("sim-")
            assert (
                over_grpc.answer == over_http.answer
            )  # greedy, the same prompt: both ways lead to the same words
            refused = await ask(grpc_client, "e2e-1")
            assert "DUPLICATE" in refused.error
            killed, reborn = await killed_and_back(stack, "scheduler-sim-0")
            again = await ask(grpc_client, "e2e-3")
            assert (again.error, again.answer) == ("", over_grpc.answer)
            async with asyncio.timeout(LIMIT_S):
                while True:
                    report = await _gather(Target(at.router, at.gateway, stack.supervisor.snapshot()))
                    if report["healthy"] and all(e["state"] == "up" for e in report["fleet"]["engines"]):
                        break
                    await asyncio.sleep(0.05)
            assert {engine["engine_id"] for engine in report["fleet"]["engines"]} == {"sim-0", "sim-1"}
            assert sum(row["restarts"] for row in report["services"]) == 1
        folder = stack.state_dir
    everyone = [pid for pid in (*pids, killed, reborn) if pid is not None]
    assert len(everyone) == 9
    assert all(gone(pid) for pid in everyone)
    assert not folder.exists()


def paceline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paceline_cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture
def stopped(tmp_path: Path):  # type: ignore[no-untyped-def]
    yield
    paceline("down", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("stopped")
def test_up_in_the_background_status_and_down(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]]
) -> None:
    sets = [part for one in (*SIMULATED, "up.ports=auto", "up.engines=1") for part in ("--set", one)]
    up = paceline("up", "--detach", "--policy", "edf-shed", *sets, cwd=tmp_path)
    assert up.returncode == 0, up.stderr
    assert up.stdout.startswith("ready: http://127.0.0.1:")
    status = paceline("status", "--json", cwd=tmp_path)
    report = json.loads(status.stdout)
    assert status.returncode == 0, status.stdout
    names = {row["name"] for row in report["services"]}
    assert names == {"executor-sim-0", "scheduler-sim-0", "predictor", "router", "gateway"}
    assert all(row["health"] == "ready" for row in report["services"])
    assert [engine["plan"]["policy"] for engine in report["fleet"]["engines"]] == ["edf-shed"]
    code, _, errors = here("up", *sets)
    assert code == 1
    assert "a stack is already running in .paceline" in errors
    pids = [row["pid"] for row in report["services"]]
    drained = paceline("drain", "sim-0", "--json", cwd=tmp_path)
    assert json.loads(drained.stdout)["state"] == "ENGINE_STATE_DRAINING"
    assert json.loads(paceline("request", "list", "--json", cwd=tmp_path).stdout) == []
    down = paceline("down", cwd=tmp_path)
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    deadline = time.monotonic() + LIMIT_S
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(pid) for pid in pids)
    logs = {file.name for file in (tmp_path / ".paceline" / "logs").iterdir()}
    assert {"router.log", "gateway.log", "executor-sim-0.log"} <= logs
