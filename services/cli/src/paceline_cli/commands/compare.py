"""`paceline compare`: several batch policies on the real stack, interleaved in one run."""

import asyncio
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from paceline_cli.errors_base import CommandError
from paceline_cli.fleet import FleetReader
from paceline_cli.output import print_json, print_table
from paceline_cli.stack.private import private_stack

if TYPE_CHECKING:
    from paceline_lab.live.compare import Comparison, Turn
    from paceline_lab.live.run import LiveSpec

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def compare(
    policies: Annotated[str, typer.Option(help="Batch policies, by commas.")] = "fcfs,sarathi,edf,gmax,pace",
    load: Annotated[float, typer.Option(min=0.01, help="Multiple of the measured capacity.")] = 1.5,
    rate: Annotated[float, typer.Option(min=0, help="Jobs per second instead of --load.")] = 0.0,
    duration: Annotated[float, typer.Option(min=5, help="Seconds of arrivals in each turn.")] = 60.0,
    warmup: Annotated[
        float, typer.Option(min=0, help="Seconds at a turn's start that are not scored.")
    ] = 10.0,
    seeds: Annotated[int, typer.Option(min=1, help="Rounds; each has arrivals of its own seed.")] = 5,
    first_seed: Annotated[int, typer.Option(help="Seed of the first round.")] = 1,
    slo_scale: Annotated[
        float, typer.Option(min=0.1, help="Budgets as a multiple of measured idle times.")
    ] = 5.0,
    mix: Annotated[str, typer.Option(help="Weights of the classes.")] = "latency=1,deadline=1,task=1",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of the stacks.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the stacks: section.key=value. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare batch policies on real engines: same arrivals, same budgets, A B C, B C A, ... in one run.

    Idle times and capacity are measured once, at the start; every turn has a private stack of its own. Differences are
    paired by seed, with 95 % intervals.

    Example: paceline compare --policies fcfs,sarathi,pace --load 1.5 --seeds 5 --out results
    """
    from paceline_lab.live.objectives import Multiples
    from paceline_lab.live.run import LiveSpec
    from paceline_lab.live.workload import WorkloadSpec, parse_mix

    names = [name.strip() for name in policies.split(",") if name.strip()]
    if len(set(names)) != len(names) or not names:
        raise CommandError("--policies wants different names, by commas")
    if warmup >= duration:
        raise CommandError(f"--warmup {warmup:g} leaves nothing of --duration {duration:g} to score")
    try:
        weights = parse_mix(mix)
    except ValueError as error:
        raise CommandError(str(error)) from None
    spec = LiveSpec(
        workload=WorkloadSpec(rate, duration, first_seed, mix=weights),
        load=load,
        multiples=Multiples(slo_scale, slo_scale, slo_scale, slo_scale),
        warmup_s=warmup,
    )
    result = asyncio.run(
        _run(spec, names, list(range(first_seed, first_seed + seeds)), config, tuple(sets or ()))
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        from paceline_cli.output import as_text

        (out / "compare.json").write_text(as_text(result.as_dict()), encoding="utf-8")
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)


async def _run(
    spec: "LiveSpec", policies: list[str], seeds: list[int], config: Path | None, sets: tuple[str, ...]
) -> "Comparison":
    from paceline_lab.live.compare import Comparison, turns

    began = time.monotonic()
    spec, conditions = await _measured(spec, config, sets)
    done: list[Turn] = []
    order = list(turns(policies, seeds))
    for number, (seed, policy) in enumerate(order, 1):
        done.append(await _turn(spec, seed, policy, config, sets))
        left_min = (time.monotonic() - began) / number * (len(order) - number) / 60
        metrics = done[-1].metrics
        _stderr.print(
            f"{number}/{len(order)} {policy} seed {seed}: {metrics['request_goodput']:.3f} jobs/s, "
            f"{metrics['token_goodput_1_1']:.1f} tokens/s in time; about {left_min:.0f} min to go"
        )
    return Comparison(tuple(done), {**conditions, "policies": policies, "seeds": seeds})


async def _measured(
    spec: "LiveSpec", config: Path | None, sets: tuple[str, ...]
) -> tuple["LiveSpec", dict[str, Any]]:
    """The spec with rate and objectives as measured on an idle stack."""
    from paceline_lab.live.calibrate import CalibrationError, measure_capacity, measure_idle
    from paceline_lab.live.objectives import objectives_from
    from paceline_lab.live.session_client import SessionClient
    from paceline_lab.prompts.library import load_library

    library = load_library()
    async with private_stack(file=config, overrides=sets, on_event=_stderr.print) as stack:
        engines = await _engines(stack.addresses.router)
        async with SessionClient(stack.addresses.router) as client:
            try:
                idle = await measure_idle(client, library, _stderr.print)
                capacity = await measure_capacity(
                    client, library, spec.workload.mix, idle, len(engines), _stderr.print
                )
            except CalibrationError as error:
                raise CommandError(str(error)) from None
    objectives = objectives_from(idle, spec.multiples, library)
    rate = spec.workload.rate_per_s or round(capacity.jobs_per_s * spec.load, 3)
    spec = replace(
        spec, workload=replace(spec.workload, rate_per_s=rate), objectives=objectives, engines=engines
    )
    window_s = spec.workload.duration_s - spec.warmup_s
    return spec, {
        "rate_per_s": rate,
        "load": rate / capacity.jobs_per_s,
        "capacity_jobs_per_s": capacity.jobs_per_s,
        "duration_s": spec.workload.duration_s,
        "warmup_s": spec.warmup_s,
        "scored_over_longest_slo": window_s * 1000 / objectives.longest_ms,
        "objectives": asdict(objectives),
        "engines": list(engines),
    }


async def _turn(
    spec: "LiveSpec", seed: int, policy: str, config: Path | None, sets: tuple[str, ...]
) -> "Turn":
    from paceline_lab.live.compare import turn_of
    from paceline_lab.live.run import run_live
    from paceline_lab.live.session_client import SessionClient

    mine = replace(spec, workload=replace(spec.workload, seed=seed), policy_label=policy)
    async with private_stack(file=config, overrides=(*sets, f"scheduler.policy={policy}")) as stack:
        await _engines(stack.addresses.router)
        async with SessionClient(stack.addresses.router) as client:
            return turn_of(policy, await run_live(mine, client))


async def _engines(router: str) -> tuple[dict[str, Any], ...]:
    async with FleetReader(router) as reader:
        fleet = await reader.read()
    up = [asdict(engine) for engine in fleet.engines if engine.state == "up"]
    if not up:
        raise CommandError(f"the private stack has no engine that is up: {fleet.problem or 'see its logs'}")
    return tuple({key: e[key] for key in ("engine_id", "model", "backend", "speed_factor")} for e in up)


def _print(result: "Comparison") -> None:
    base = result.policies[0]
    rows = []
    for policy in result.policies:
        ratio = result.mean(policy, "request_goodput").mean / max(
            result.mean(base, "request_goodput").mean, 1e-9
        )
        rows.append(
            [
                policy,
                *(
                    _with_interval(result.mean(policy, name).mean, result.mean(policy, name).half, digits)
                    for name, digits in (
                        ("request_goodput", 3),
                        ("token_goodput_1_1", 1),
                        ("token_goodput_1_8", 0),
                    )
                ),
                f"{result.mean(policy, 'attainment').mean:.0%}",
                f"{result.mean(policy, 'output_tokens_per_s').mean:.1f}",
                f"{ratio:.2f}x",
            ]
        )
    columns = (
        "policy",
        "jobs/s in time",
        "tokens/s 1:1",
        "tokens/s 1:8",
        "attained",
        "raw tokens/s",
        f"against {base}",
    )
    print_table(columns, rows, right=columns[1:])


def _with_interval(mean: float, half: float, digits: int) -> str:
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} +- {half:.{digits}f}"
