"""`paceline lengths collect` as a process: what it prints, how it is interrupted, how it goes on."""

import json
import lzma
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline_cli.app import app
from paceline_cli.errors_base import CommandError

PATIENCE_S = 180.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "arena-hard"
    folder.mkdir(parents=True)
    with lzma.open(folder / "answers.jsonl.xz", "wt") as file:
        file.writelines(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(400))
    return tmp_path / "data"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "paceline_cli", "lengths", "collect", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_an_interrupted_collection_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "outputs.jsonl"
    settings = ("--data", data, "--out", out, "--model", "tiny", "--batch", 2, "--max-tokens", "400")
    process = subprocess.Popen(command(*settings), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not out.exists() or out.read_bytes().count(b"\n") < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "run the same command to go on" in said
    before = out.read_bytes()
    kept = before.count(b"\n")
    assert before.endswith(b"\n")
    assert kept < 400
    done = run(*settings, "--limit", kept + 3)
    assert done.returncode == 0, done.stderr
    assert f"{kept + 3} outputs in" in done.stderr
    assert out.read_bytes().startswith(before)
    assert len({json.loads(line)["prompt_id"] for line in out.read_text().splitlines()}) == kept + 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--prompts", "nonsense"), "no such prompt set: nonsense"),
        (("--temperatures", "hot"), "--temperatures: numbers"),
        (("--max-tokens", "0"), "--max-tokens: every limit is at least 1"),
        (("--prompts", "gsm8k"), "no prompt set under"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    data: Path, tmp_path: Path, wrong: tuple[str, str], says: str
) -> None:
    arguments = ["lengths", "collect", "--data", str(data), "--out", str(tmp_path / "out.jsonl"), *wrong]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, CommandError)
    assert says in str(done.exception)
