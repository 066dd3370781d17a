"""`paceline doctor trtllm`: what it says without sources, with sources, and of checks that ran on the emulator."""

import json
from pathlib import Path

from typer.testing import CliRunner

from paceline_cli.app import app


def test_without_sources_it_says_that_nothing_was_checked() -> None:
    answer = CliRunner().invoke(app, ["doctor", "trtllm", "--json"])
    assert answer.exit_code == 0
    (finding,) = json.loads(answer.output)
    assert finding["level"] == "warning"
    assert "NOT CHECKED" in finding["found"]


def test_sources_that_do_not_fit_end_it_with_code_1(tmp_path: Path) -> None:
    path = tmp_path / "tensorrt_llm/llmapi/llm.py"
    path.parent.mkdir(parents=True)
    path.write_text("class LLM:\n    def generate_async(self, inputs): ...\n")
    answer = CliRunner().invoke(app, ["doctor", "trtllm", "--sources", str(tmp_path), "--json"])
    assert answer.exit_code == 1
    found = {finding["check"]: finding["level"] for finding in json.loads(answer.output)}
    assert found["LLM.generate_async: inputs"] == "ok"
    assert found["LLM.generate_async: priority"] == "warning"
    assert found["LLM.generate_async: streaming"] == "problem"
    assert found["SimpleScheduler (private)"] == "warning"


def test_the_live_checks_pass_on_the_emulator_and_say_so(tmp_path: Path) -> None:
    report = tmp_path / "live.json"
    answer = CliRunner().invoke(app, ["doctor", "trtllm", "--emulated", "--report", str(report), "--json"])
    assert answer.exit_code == 0, answer.output
    findings = json.loads(report.read_text())
    assert len(findings) == 5
    assert all(finding["level"] == "ok" for finding in findings)
    assert all(finding["found"].startswith("emulated, no GPU") for finding in findings)


def test_the_live_checks_without_the_package_are_told_as_not_run() -> None:
    answer = CliRunner().invoke(app, ["doctor", "trtllm", "--live", "/models/none", "--json"])
    assert "NOT RUN" in answer.output
