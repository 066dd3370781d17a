"""`paceline replay`: batch policies in the simulator, over loads, batch limits and seeds."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline_cli.errors_base import CommandError
from paceline_cli.output import print_json, print_table

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def replay(
    workload: Annotated[str, typer.Option(help="Name of the workload.")] = "jitserve-mix",
    policies: Annotated[
        str,
        typer.Option(
            help="Batch policies as `name` or `name:key=value`, by commas; the others are compared with the first."
        ),
    ] = "sarathi,fcfs",
    engines: Annotated[
        str,
        typer.Option(help="Engine profiles as `name`, `name:count`, by commas; or a YAML file of engines."),
    ] = "a100-80-8b",
    batch_limit: Annotated[str, typer.Option(help="Batch limits, by commas.")] = "32",
    load: Annotated[
        str, typer.Option(help="Loads as multiples of the knee (found first, with sarathi), by commas.")
    ] = "0.5,1.0,1.5",
    knee: Annotated[
        str,
        typer.Option(help="Jobs per second of the knee, by commas for each batch limit. Empty: it is found."),
    ] = "",
    rate: Annotated[str, typer.Option(help="Jobs per second, by commas; instead of --load.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to N.")] = 1,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 1,
    cv: Annotated[
        float, typer.Option(min=0.05, help="Coefficient of variation of the gaps; 1: Poisson.")
    ] = 1.0,
    slo_scale: Annotated[float, typer.Option(min=0.05, help="All objectives times this.")] = 1.0,
    mix: Annotated[
        str, typer.Option(help="Weights of a mixed workload's parts, as part=weight by commas.")
    ] = "",
    lengths: Annotated[
        str,
        typer.Option(
            help="Length estimates that policies see: predictor[:R2], noisy:SIGMA[:BIAS], class, constant, shuffled, "
            "true."
        ),
    ] = "predictor",
    placement: Annotated[
        str, typer.Option(help="Placement policy where there are several engines.")
    ] = "least-predicted",
    window: Annotated[
        float, typer.Option(min=0, help="Seconds that are scored. 0: ten times the longest budget.")
    ] = 0.0,
    warmup: Annotated[
        float, typer.Option(min=0, help="Seconds before, not scored. 0: the longest budget.")
    ] = 0.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds after, in which load goes on. 0: the longest budget.")
    ] = 0.0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the public traces that a workload replays.")
    ] = None,
    bound: Annotated[
        bool, typer.Option("--bound", help="Compute the fluid bound of each load and seed. Needs scipy.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for replay.json and plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Simulate policies on engines made of numbers and compare their goodput. Figures are simulated, not measured.

    Examples:

      paceline replay --policies pace,gmax,sarathi --load 0.5,1.0,1.5 --seeds 5 --jobs 2 --out replay

      paceline replay --policies sarathi --rate 1.0 --window 300 --json
    """
    from paceline_lab.sim.cell import WorkloadSpec
    from paceline_lab.sim.engine_spec import parse_engines
    from paceline_lab.sim.estimates import LengthSpec
    from paceline_lab.sim.replay import ReplayPlan, run_replay
    from paceline_lab.sim.replay_report import COLUMNS, document, table_rows

    try:
        specs = parse_engines(engines)
        plan = ReplayPlan(
            workload=WorkloadSpec(workload, cv, slo_scale, _mix(mix), "" if data is None else str(data)),
            engines=specs,
            policies=_known_policies(policies),
            batch_limits=tuple(int(limit) for limit in batch_limit.split(",")),
            loads=() if rate else _numbers(load),
            rates=_numbers(rate) if rate else (),
            seeds=tuple(range(first_seed, first_seed + seeds)),
            lengths=LengthSpec.parse(lengths),
            placement=placement if len(specs) > 1 else "",
            warmup_s=warmup,
            window_s=window,
            grace_s=grace,
            jobs=jobs,
            knees=_numbers(knee) if knee else (),
            bound=bound,
        )
        if plan.knees and len(plan.knees) != len(plan.batch_limits):
            raise ValueError("--knee: one for each batch limit")
        result = run_replay(plan, _say, _progress)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if out is not None:
        from paceline_lab.sim.replay_plot import save_plots

        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_text(json.dumps(document(result), indent=1) + "\n", encoding="utf-8")
        _say(f"figures: {out / 'replay.json'}, " + ", ".join(str(path) for path in save_plots(result, out)))
    if as_json:
        print_json(document(result))
        return
    typer.echo(
        "simulated; ± is half of the 95 % interval over seeds, `vs first` the paired difference (tok 1:1 /s)"
    )
    print_table(COLUMNS, table_rows(result), right=[name for name in COLUMNS if name != "policy"])


def _say(text: str) -> None:
    _stderr.print(text, markup=False)


def _progress(row: dict[str, Any], done: int, total: int) -> None:
    load = "" if row["load"] is None else f" load {row['load']:g}"
    _say(
        f"[{done}/{total}] {row['policy']} B {row['max_batch']}{load} {row['rate_per_s']:.2f} jobs/s "
        f"seed {row['seed']}: "
        f"{row['token_goodput_1_1']:.0f} tok/s in time, attainment {row['attainment'] or 0:.3f}, {row['wall_s']:.1f} s"
    )


def _numbers(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{text!r}: numbers greater than 0, by commas")
    return values


def _known_policies(text: str) -> tuple[str, ...]:
    from paceline_lab.sim.cell import batch_policy

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        batch_policy(name)
    return names


def _mix(text: str) -> tuple[tuple[str, float], ...]:
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    return tuple((name.strip(), float(value or 1)) for name, _, value in parts)
