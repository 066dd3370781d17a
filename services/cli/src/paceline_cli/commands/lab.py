"""`paceline lab`: checks of the laboratory itself: engine profiles."""

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline_cli.errors_base import CommandError
from paceline_cli.output import print_json, print_table

app = typer.Typer(help="Check what the simulator stands on.", no_args_is_help=True)


@app.callback()
def lab() -> None:
    """Check what the simulator stands on."""


@app.command("engines")
def engines(
    data: Annotated[
        Path, typer.Option("--data", help="Folder of the public data sets, or their gpu-perf folder.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Hold the engine profiles against measured GPU times and print the errors.

    Batches over 64 are marked as extrapolated. F and W of a profile are taken as they stand; the overhead of a step is
    fitted for each engine and model in 0.5 to 3 ms, and the error with the profile's own stands beside.

    Example: paceline lab engines --data data --json
    """
    from paceline_lab.engines.check import check_engines
    from paceline_lab.machine import describe_machine

    try:
        document = check_engines(data)
    except FileNotFoundError as error:
        raise CommandError(
            f"{error.filename} is not there: fetch gpu-perf (LLM-Inference-Bench and the aiconfigurator grid) and name "
            "its folder with --data"
        ) from None
    if as_json:
        print_json({**document, "machine": describe_machine()})
        return
    print_table(
        (
            "gpu",
            "engine",
            "model",
            "points",
            "overhead ms",
            "median error",
            "where KV fits",
            "shipped overhead",
        ),
        _latency_rows(document),
        right=("points", "overhead ms", "median error", "where KV fits", "shipped overhead"),
    )
    typer.echo("")
    print_table(
        ("gpu", "modelled step", "points", "median error", "median bias"),
        (
            (gpu, kind, row["points"], _percent(row["median_error"]), _percent(row["median_bias"]))
            for gpu, kinds in document["modelled_steps"]["by_gpu"].items()
            for kind, row in kinds.items()
        ),
        right=("points", "median error", "median bias"),
    )
    typer.echo(f"\nnothing measured to check against: {', '.join(document['not_checked'])}")


def _latency_rows(document: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            gpu,
            row.get("engine", "all"),
            row.get("model", "all"),
            row["points"],
            row.get("overhead_ms", ""),
            _percent(row["median_error"]),
            _percent(row["median_error_kv_fits"]),
            _percent(row["median_error_shipped_overhead"]),
        )
        for gpu, report in document["measured_batch_latencies"]["by_gpu"].items()
        for row in [*report["runs"], report]
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
