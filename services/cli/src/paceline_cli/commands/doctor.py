"""`paceline doctor`: says what is wrong and what to do."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from paceline_cli.doctor import installation, machine, services
from paceline_cli.doctor.finding import Finding, Level
from paceline_cli.output import console, print_json
from paceline_cli.stack.layout import wanted_ports
from paceline_cli.stack.run import StackPlan, prepare
from paceline_cli.stack.statefile import STATE_FILE, StateDir
from paceline_cli.target import DEFAULT_STATE_DIR, JsonOption, StateDirOption

_SIGN = {Level.OK: "[green]ok[/]     ", Level.WARNING: "[yellow]warning[/]", Level.PROBLEM: "[red]problem[/]"}


app = typer.Typer(help="Says what is wrong and what to do.")


@app.callback(invoke_without_command=True)
def doctor(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of the stack.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any key: section.key=value. Repeatable.")
    ] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Check whether a stack can run here: Python, packages, libraries, ports, model, database, clock, disk, cores.

    Ends with code 1 when something stands in the way; warnings do not count.

    Examples:

      paceline doctor

      paceline doctor --config paceline.yaml --json
    """
    if context.invoked_subcommand is None:
        _tell(examine(StackPlan(state_dir, config, overrides=tuple(sets or ()))), as_json)


@app.command("trtllm")
def trtllm(
    sources: Annotated[
        Path | None,
        typer.Option("--sources", help="Folder that holds tensorrt_llm/; default: the installed one."),
    ] = None,
    live: Annotated[
        str, typer.Option("--live", help="Model folder: run the GPU checks on it, in the vendor's image.")
    ] = "",
    emulated: Annotated[
        bool, typer.Option("--emulated", help="Run them on the emulator: proves no GPU.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write the findings here, as JSON.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a build of TensorRT-LLM is what the agent was written for, by its sources and on a GPU.

    Sources are read, not imported. Ends with code 1 when the agent does not fit them.

    Examples:

      paceline doctor trtllm --sources TensorRT-LLM

      paceline doctor trtllm --live /models/llama --report live.json
    """
    from paceline_cli.doctor.trtllm import live_findings, source_findings

    findings = live_findings(live, emulated=emulated) if live or emulated else source_findings(sources)
    if report is not None:
        report.write_text(json.dumps([asdict(finding) for finding in findings], indent=1), encoding="utf-8")
    _tell(findings, as_json)


def _tell(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            console.print(f"{_SIGN[finding.level]} {finding.check}: ", end="")
            console.print(finding.found, markup=False)
            if finding.advice:
                console.print(f"        -> {finding.advice}", markup=False)
    if any(finding.level is Level.PROBLEM for finding in findings):
        raise SystemExit(1)


def examine(plan: StackPlan) -> list[Finding]:
    """All findings, in the order in which a start would meet them."""
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        tree, up, _ = prepare(plan, write_to=Path(folder))
    executor = tree.get("executor", {})
    state_dir = StateDir(plan.state_dir)
    running = state_dir.read()
    if running is not None and not running.alive():
        running = None
    model = services.check_model(executor)
    threads = up.engines * int(executor.get("threads", 1)) if executor.get("backend") == "llamacpp" else 0
    state_file = plan.state_dir / STATE_FILE
    newest = state_file.stat().st_mtime if state_file.exists() else None
    findings = [
        installation.check_python(),
        installation.check_packages(installation.find_lock()),
        *installation.check_engine_library(),
        model,
        machine.check_cores(threads, machine.cores()),
        machine.check_writable(plan.state_dir),
        machine.check_disk(plan.state_dir, needs_model=model.level is Level.WARNING),
        machine.check_clock(newest_file_unix_s=newest),
        services.check_database(str(tree.get("store", {}).get("url", ""))),
    ]
    if up.ports == "fixed":
        findings += services.check_ports(up.host, wanted_ports(up), running)
    return findings
