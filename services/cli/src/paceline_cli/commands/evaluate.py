"""`paceline eval`: the prediction models against simple rivals, on held-out data."""

from pathlib import Path
from typing import Annotated

import typer

from paceline_cli.errors_base import CommandError
from paceline_cli.output import print_json
from paceline_cli.progress_bars import progress_bars
from paceline_cli.training import needs_data, shipped_collection, too_little_data, training_libraries

app = typer.Typer(help="Evaluate the prediction models; see docs/prediction.md.", no_args_is_help=True)

DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of the public data sets.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")]


SPLITS = ("prompt", "family", "source")


def split_kinds(text: str) -> tuple[str, ...]:
    """The kinds of splits in `a,b`, or all. Raises CommandError."""
    kinds = SPLITS if text == "all" else tuple(part.strip() for part in text.split(","))
    if unknown := [kind for kind in kinds if kind not in SPLITS]:
        raise CommandError(f"no such split: {', '.join(unknown)}; there are {', '.join(SPLITS)}, or all")
    return kinds


@app.command("length")
def length(
    data: DataOption = None,
    collected: Annotated[
        Path | None,
        typer.Option(help="Outputs collected from a real engine; default: those beside the shipped model."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for report.md, evaluation.json and plots.")
    ] = None,
    splits: Annotated[
        str, typer.Option(help="Which splits, by commas: prompt, family, source; or `all`.")
    ] = "all",
    seed: SeedOption = 1,
    jobs: Annotated[int, typer.Option(min=1, max=16, help="Processes that fit models.")] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer splits and orders: minutes less, wider intervals.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score every length model and rival on the same splits, frozen and learning online.

    Takes half an hour or more on two cores; with --quick and --splits prompt some four minutes.

    Example: paceline eval length --data data --out evaluation
    """
    folder = needs_data(data, "length")
    with training_libraries():
        from paceline_lab.lengths.evaluate import EvaluationPlan, evaluate
        from paceline_lab.lengths.report import markdown, targets_text, write_report

        plan = EvaluationPlan(folder, shipped_collection(collected), split_kinds(splits), seed, quick, jobs)
        with progress_bars() as report, too_little_data():
            document = evaluate(plan, report)
        if out is not None:
            write_report(document, out)
    if as_json:
        print_json(document)
    elif out is not None:
        typer.echo(targets_text(document))
        typer.echo(f"report: {out / 'report.md'}")
    else:
        typer.echo(markdown(document))


@app.command("tasks")
def tasks(
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for tasks.json, tables and plots.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds by group of tasks.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Score task forecasts on held-out tasks against the paper's matching and simple rivals.

    Example: paceline eval tasks --data data --out task-evaluation
    """
    folder = needs_data(data, "task")
    with training_libraries():
        from paceline_lab.tasks.evaluate import evaluate_tasks

        with progress_bars() as report:
            try:
                document = evaluate_tasks(folder, out, report, folds=folds, seed=seed)
            except ValueError as error:
                raise CommandError(str(error)) from None
    if as_json or out is None:
        print_json(document)
    else:
        typer.echo(f"report: {out}")
