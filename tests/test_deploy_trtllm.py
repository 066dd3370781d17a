"""The image with TensorRT-LLM: what can be said of it without the vendor's image."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMAGE = ROOT / "deploy" / "images" / "executor-trtllm"


def test_it_gets_what_the_executor_needs_and_keeps_what_the_vendor_has() -> None:
    wanted = runpy.run_path(str(IMAGE / "requirements.py"), run_name="requirements")["wanted"]
    projects = [
        (ROOT / "services" / name / "pyproject.toml").read_text() for name in ("core", "runtime", "executor")
    ]
    lines = wanted((ROOT / "requirements.lock").read_text(), projects)
    names = {line.split("==")[0] for line in lines}
    assert {"grpcio", "pydantic", "httpx"} <= names
    assert not names & {"numpy", "torch", "transformers", "xllamacpp", "paceline-core"}


def test_it_copies_what_is_there() -> None:
    text = (IMAGE / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE)
    assert len(sources) >= 7
    assert all((ROOT / source).exists() for source in sources)
    assert "STOPSIGNAL SIGTERM" in text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "single=1 python3 -m paceline_executor --config x --set executor.trtllm.tensor_parallel=1"),
        ({"PACELINE_RANKS": "2"}, "single= python3 -m paceline_executor --config x"),
        (
            {"PACELINE_RANKS": "4", "PACELINE_LAUNCHER": "launch"},
            "single= launch python3 -m paceline_executor --config x",
        ),
    ],
)
def test_the_entry_point_starts_one_rank_or_several(
    tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    for name in ("python3", "launch"):
        told = tmp_path / name
        told.write_text(f'#!/bin/sh\necho "single=${{TLLM_WORKER_USE_SINGLE_PROCESS:-}} {name} $@"\n')
        told.chmod(0o755)
    answer = subprocess.run(
        ["sh", str(IMAGE / "entrypoint.sh"), "--config", "x"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == expected
