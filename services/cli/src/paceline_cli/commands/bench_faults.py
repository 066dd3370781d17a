"""`paceline bench faults`: what clients see when parts of the line are killed."""

import asyncio
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline_cli.output import print_json, print_table

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def faults(
    requests: Annotated[
        int, typer.Option(min=8, help="Requests, half of them in each durability mode.")
    ] = 10_000,
    store: Annotated[
        str, typer.Option(help="sqlite, postgres (a server from a wheel) or the URL of a database.")
    ] = "sqlite",
    model: Annotated[
        str, typer.Option(help="simulated, tiny (the real engine with a random model) or a GGUF file.")
    ] = "simulated",
    engines: Annotated[int, typer.Option(min=1, max=16, help="Engines, each with its scheduler.")] = 3,
    at_once: Annotated[int, typer.Option(min=6, help="Requests under way at the same time.")] = 32,
    fault_every: Annotated[int, typer.Option(min=1, help="Requests for each fault.")] = 40,
    outage: Annotated[float, typer.Option(min=0.1, help="Seconds that the store stays away.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Chooses requests, clients and faults.")] = 1,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the private stack: section.key=value.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Kill, freeze and cut off parts of a private stack under load, and compare every client's tokens with a calm run.

    Ends with 1 when a token was lost, doubled, out of order or not its own, a request failed, or something leaked.

    Examples:

      paceline bench faults --requests 400

      paceline bench faults --store postgres --json
    """
    from paceline_cli.bench.faults import run_faults
    from paceline_cli.errors_base import CommandError
    from paceline_cli.progress_bars import progress_bars
    from paceline_lab.bench.faults.plan import FaultBenchError, FaultPlan

    try:
        prompts = min(128, max(8, requests // 4))
        plan = FaultPlan(
            requests, seed, at_once=at_once, fault_every=fault_every, prompts=prompts, outage_s=outage
        )
        with progress_bars() as progress:
            result = asyncio.run(
                run_faults(
                    plan,
                    engines=engines,
                    store=store,
                    model=model,
                    overrides=tuple(sets or ()),
                    say=lambda text: _stderr.print(text, markup=False),
                    progress=progress,
                )
            )
    except ValueError as error:
        raise CommandError(str(error)) from None
    except FaultBenchError as error:
        raise CommandError(f"the run is void: {error}") from None
    if as_json:
        print_json(result)
    else:
        _print(result)
    if result["damaged"]:
        raise typer.Exit(1)


_COLUMNS = ("requests", "tokens", "lost", "duplicated", "spliced", "reordered", "failed_requests")


def _print(result: dict[str, Any]) -> None:
    rows = [
        (
            row["durability"],
            *(row[name] for name in _COLUMNS),
            sum(row["leaked"].values()),
            sum(row["faults"].values()),
        )
        for row in result["rows"]
    ]
    names = ("durability", *_COLUMNS, "leaked", "faults")
    print_table(names, rows, right=names[1:])
    for told in result["damaged_requests"]:
        print(told)
    for row in result["rows"]:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(row["faults"].items()))
        print(
            f"{row['durability']}: {kinds}; {row['replayed_requests']} replayed, {row['reattached']} attached again"
        )
    print(f"store: {result['store']}, its own faults: {result['store_faults']}")
