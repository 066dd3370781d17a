"""`paceline live`: open-loop load on a running or a private stack."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from paceline_cli.errors_base import CommandError
from paceline_cli.fleet import EngineView, FleetReader
from paceline_cli.output import print_json
from paceline_cli.stack.private import private_stack
from paceline_cli.target import DEFAULT_STATE_DIR, RouterOption, StateDirOption, find_target

if TYPE_CHECKING:
    from paceline_lab.live.client import Client
    from paceline_lab.live.report import LiveReport
    from paceline_lab.live.run import LiveSpec

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


class ArrivalsOption(StrEnum):
    """The process of arrivals."""

    POISSON = "poisson"
    GAMMA = "gamma"


class Via(StrEnum):
    """How the stack is called."""

    GRPC = "grpc"
    HTTP = "http"


def live(
    duration: Annotated[float, typer.Option(min=5, help="Seconds in which jobs arrive.")] = 120.0,
    rate: Annotated[
        float,
        typer.Option(
            min=0, help="Jobs per second; a task is one job. 0: --load times the measured capacity."
        ),
    ] = 0.0,
    load: Annotated[
        float, typer.Option(min=0.01, help="Share of the measured capacity, when --rate is not given.")
    ] = 0.7,
    arrivals: Annotated[
        ArrivalsOption, typer.Option(help="The process of arrivals.")
    ] = ArrivalsOption.POISSON,
    cv: Annotated[float, typer.Option(min=0.05, help="Coefficient of variation of the gaps (gamma).")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of arrivals and prompts.")] = 1,
    mix: Annotated[
        str, typer.Option(help="Weights of the classes: latency, deadline, task, best-effort.")
    ] = "latency=1,deadline=1,task=1",
    warmup: Annotated[float, typer.Option(min=0, help="Seconds at the start that are not scored.")] = 10.0,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds given to what still runs at the end. 0: 1.5 times the longest budget, at most 60.",
        ),
    ] = 0.0,
    slo_scale: Annotated[
        float, typer.Option(min=0.1, help="Budgets as a multiple of measured idle times, for all classes.")
    ] = 5.0,
    ttft_ms: Annotated[
        float, typer.Option(min=0, help="Explicit TTFT budget; give all four to skip the idle calls.")
    ] = 0.0,
    tbt_ms: Annotated[float, typer.Option(min=0, help="Explicit TBT budget.")] = 0.0,
    deadline_ms: Annotated[float, typer.Option(min=0, help="Explicit budget of the deadline class.")] = 0.0,
    task_stage_ms: Annotated[
        float, typer.Option(min=0, help="Explicit budget of a task, for each stage.")
    ] = 0.0,
    via: Annotated[
        Via, typer.Option(help="grpc: one session with the router. http: the gateway's OpenAI API.")
    ] = Via.GRPC,
    private: Annotated[
        bool, typer.Option("--private", help="Start a stack for this run, on free ports.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of the private stack.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of the private stack: section.key=value. Repeatable."),
    ] = None,
    policy_label: Annotated[str, typer.Option(help="Name of this run in the report.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (png, svg or pdf).")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
) -> None:
    """Put a mixed load of real prompts on a stack and say how many answers arrived in time.

    Open loop: jobs arrive when they are due, whatever became of earlier ones. Budgets are multiples of what the idle
    stack needs, which is measured first. What has not ended when the grace is over is a miss.

    Examples:

      paceline live

      paceline live --rate 1.5 --arrivals gamma --cv 3 --seed 7 --plot live.png

      paceline live --private --set scheduler.policy=edf --policy-label edf --json > edf.json
    """
    from paceline_lab.live.arrivals import Arrivals
    from paceline_lab.live.objectives import Multiples, Objectives
    from paceline_lab.live.run import LiveSpec
    from paceline_lab.live.workload import WorkloadSpec, parse_mix

    explicit = (ttft_ms, tbt_ms, deadline_ms, task_stage_ms)
    if any(explicit) and not all(explicit):
        raise CommandError(
            "give all of --ttft-ms, --tbt-ms, --deadline-ms and --task-stage-ms, or none of them"
        )
    if warmup >= duration:
        raise CommandError(f"--warmup {warmup:g} leaves nothing of --duration {duration:g} to score")
    if (config or sets) and not private:
        raise CommandError("--config and --set describe a private stack: add --private")
    try:
        weights = parse_mix(mix)
    except ValueError as error:
        raise CommandError(str(error)) from None
    kind = Arrivals(arrivals.value)
    spec = LiveSpec(
        workload=WorkloadSpec(rate, duration, seed, kind, cv if kind is Arrivals.GAMMA else 1.0, weights),
        load=load,
        multiples=Multiples(slo_scale, slo_scale, slo_scale, slo_scale),
        objectives=Objectives(*explicit) if all(explicit) else None,
        warmup_s=warmup,
        grace_s=grace,
        policy_label=policy_label,
        transport=via.value,
    )
    report = asyncio.run(_run(spec, via, private, config, tuple(sets or ()), state_dir, router))
    if plot is not None:
        from paceline_lab.live.plot import save_plot

        save_plot(report, plot)
        _stderr.print(f"picture: {plot}")
    if as_json:
        print_json(report.as_dict())
    else:
        from paceline_cli.live_table import print_report

        print_report(report)


async def _run(
    spec: "LiveSpec",
    via: Via,
    private: bool,
    config: Path | None,
    sets: tuple[str, ...],
    state_dir: Path,
    router: str,
) -> "LiveReport":
    from dataclasses import replace

    from paceline_lab.live.calibrate import CalibrationError
    from paceline_lab.live.run import run_live

    async with _addresses(private, config, sets, state_dir, router) as (router_at, gateway_at):
        engines = await _engines(router_at)
        described = tuple(
            {key: asdict(engine)[key] for key in ("engine_id", "model", "backend", "speed_factor")}
            for engine in engines
        )
        with _progress() as bars:
            task = bars.add_task("measuring", total=None, detail="")
            try:
                async with _client(via, router_at, gateway_at, engines[0].model) as client:
                    return await run_live(
                        replace(spec, engines=described),
                        client,
                        say=lambda text: bars.console.print(text),
                        on_progress=lambda now: bars.update(
                            task,
                            description="driving"
                            if now.elapsed_s < spec.workload.duration_s
                            else "last answers",
                            total=now.total_s,
                            completed=max(0.0, min(now.elapsed_s, now.total_s)),
                            detail=f"{now.arrived} arrived, {now.live} live, {now.failed} failed, "
                            f"{now.output_tokens} tokens",
                        ),
                    )
            except CalibrationError as error:
                raise CommandError(str(error)) from None


@contextlib.asynccontextmanager
async def _addresses(
    private: bool, config: Path | None, sets: tuple[str, ...], state_dir: Path, router: str
) -> AsyncIterator[tuple[str, str]]:
    """Router and gateway of the stack to drive."""
    if not private:
        target = find_target(state_dir, router)
        yield target.router, target.gateway
        return
    async with private_stack(file=config, overrides=sets, on_event=_stderr.print) as stack:
        yield stack.addresses.router, stack.addresses.gateway


@contextlib.asynccontextmanager
async def _client(via: Via, router: str, gateway: str, model: str) -> AsyncIterator["Client"]:
    from paceline_lab.live.http_client import HttpClient
    from paceline_lab.live.session_client import SessionClient

    async with SessionClient(router) if via is Via.GRPC else HttpClient(gateway, model=model) as client:
        yield client


async def _engines(router: str) -> tuple[EngineView, ...]:
    async with FleetReader(router) as reader:
        fleet = await reader.read()
    if fleet.problem:
        raise CommandError(
            f"no router answers at {router}: start a stack with `paceline up`, add --private, or name one with --router"
        )
    up = tuple(engine for engine in fleet.engines if engine.state == "up")
    if not up:
        raise CommandError(f"the router at {router} has no engine that is up: see `paceline status`")
    return up


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[detail]}"),
        console=_stderr, refresh_per_second=4,
    )  # fmt: skip
