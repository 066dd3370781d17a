"""The command line: help, and errors in one clear line."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from paceline_cli.app import app
from paceline_cli.errors_base import CommandError

Here = Callable[..., tuple[int, str, str]]
COMMANDS = [
    ["up"], ["down"], ["status"], ["request", "list"], ["request", "show"], ["explain"], ["drain"], ["doctor"],
    ["config", "show"], ["live"], ["bench", "line"], ["bench", "relay"],
    ["bench", "predictor"], ["bench", "scheduler"],
]  # fmt: skip


def paceline(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paceline_cli", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    answer = CliRunner().invoke(app, [*command, "--help"])
    assert answer.exit_code == 0
    assert f"paceline {' '.join(command)}" in answer.output.split("Example", 1)[-1]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status"], "start a stack with `paceline up`"),
        (["request", "list"], "no router answers at 127.0.0.1:"),
        (["request", "list", "--state", "sleeping"], "unknown state 'sleeping'; known: accepted, placed"),
        (["live", "--duration", "20"], "no router answers at 127.0.0.1:"),
        (["live", "--warmup", "120"], "--warmup 120 leaves nothing of --duration 120 to score"),
        (["live", "--mix", "chat=1"], "unknown class 'chat' in the mix; known: latency"),
        (["live", "--ttft-ms", "100"], "give all of --ttft-ms"),
        (["up", "--config", "absent.yaml"], "absent.yaml: No such file or directory"),
        (["up", "--set", "up.engins=1"], "up.engins: unknown key; did you mean 'engines'?"),
        (["up", "--set", "engines"], "engines: write it as section.key=value"),
        (
            ["up", "--engines", "1", "--set", "up.ports=sometimes"],
            "up.ports: Input should be 'fixed' or 'auto'",
        ),
        (["bench", "relay", "--memory-requests", "10"], "--memory-requests must be more than the 1024"),
    ],
)
def test_errors_are_one_clear_line_without_a_traceback(
    arguments: list[str],
    expected: str,
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACELINE_ROUTER_ADDRESS", f"127.0.0.1:{closed_port()}")
    code, _, errors = here(*arguments)
    assert code != 0
    assert errors.startswith("paceline: ")
    assert expected in errors
    assert "Traceback" not in errors


def test_debug_lets_the_error_through(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_DEBUG", "0")  # what the command sets is put back after the test
    with pytest.raises(CommandError, match="unknown state 'sleeping'"):
        here("--debug", "request", "list", "--state", "sleeping")


def test_taken_port_is_reported_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = paceline("up", "--model", "tiny", "--port", str(port), cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("paceline: ")
    assert f"port {port} (gateway) is held by pid {os.getpid()}" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_down_without_a_stack_is_no_error(here: Here) -> None:
    assert here("down") == (0, "no stack runs in .paceline\n", "")


def test_shown_configuration_is_explained_and_can_be_used_again(here: Here, tmp_path: Path) -> None:
    code, shown, errors = here(
        "config", "show", "--set", "router.placement=round-robin", "--set", "up.engines=3"
    )
    assert code == 0, errors
    tree = yaml.safe_load(shown)
    assert tree["router"]["placement"] == "round-robin"
    assert tree["up"]["engines"] == 3
    assert {"gateway", "scheduler", "executor", "predictor", "store", "log"} <= tree.keys()
    assert "# Placement policy" in shown
    file = tmp_path / "paceline.yaml"
    file.write_text(shown)
    _, again, _ = here("config", "show", "--config", str(file))
    assert yaml.safe_load(again) == tree
