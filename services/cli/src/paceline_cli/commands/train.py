"""`paceline train`: the prediction models, from public data and our own collected outputs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from paceline_cli.errors_base import CommandError
from paceline_cli.progress_bars import progress_bars
from paceline_cli.training import needs_data, shipped_collection, too_little_data, training_libraries

app = typer.Typer(help="Train the prediction models; see docs/prediction.md.", no_args_is_help=True)

DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of the public data sets.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for what is written.")]
JobsOption = Annotated[int, typer.Option(min=1, max=16, help="Processes that fit models on held-out splits.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


class KindOption(StrEnum):
    """Which length model."""

    AUTO = "auto"
    QRF = "qrf"
    MOE = "moe"
    MIXTURE = "mixture"


@app.command("length")
def length(
    data: DataOption = None,
    collected: Annotated[
        Path | None,
        typer.Option(help="Outputs collected from a real engine; default: those beside the shipped model."),
    ] = None,
    out: OutOption = Path("trained-models"),
    kind: Annotated[
        KindOption, typer.Option(help="auto: the best on held-out data by CRPS.")
    ] = KindOption.AUTO,
    seed: SeedOption = 1,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer held-out splits: the card says less, the model is the same."),
    ] = False,
    jobs: JobsOption = 2,
) -> None:
    """Train the length model on permissive sets and collected outputs: length.onnx and MODEL_CARD.md.

    Example: paceline train length --data data --out trained-models
    """
    folder = needs_data(data, "length")
    with training_libraries():
        from paceline_lab.lengths.train import TrainPlan, train

        plan = TrainPlan(folder, out, shipped_collection(collected), kind.value, seed, quick, jobs)
        with progress_bars() as report, too_little_data():
            trained = train(plan, report)
    for note in trained.notes:
        typer.echo(note, err=True)
    typer.echo(
        f"{trained.model_path}: {trained.kind}, version {trained.version}, {trained.model_bytes} bytes"
    )
    typer.echo(f"{trained.card_path}")


@app.command("tasks")
def tasks(data: DataOption = None, out: OutOption = Path("trained-models"), seed: SeedOption = 0) -> None:
    """Train the task matcher on the permissive sets of finished tasks: tasks.onnx.

    Example: paceline train tasks --data data --out trained-models
    """
    folder = needs_data(data, "task")
    with training_libraries():
        from paceline_lab.tasks.dataset import load
        from paceline_lab.tasks.training import build

        corpus = load(folder).permissive()
        for note in corpus.missing:
            typer.echo(note, err=True)
        if not corpus.examples:
            raise CommandError(f"{folder} has no task set that may be trained on")
        sources = sorted({example.source for example in corpus.examples})
        card: dict[str, object] = {
            "sources": {name: sum(e.source == name for e in corpus.examples) for name in sources},
            "seed": seed,
            "command": f"paceline train tasks --data DIR --seed {seed}",
        }
        with progress_bars() as report:
            content = build(corpus.examples, seed=seed, card=card, progress=report)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tasks.onnx").write_bytes(content)
    typer.echo(f"{out / 'tasks.onnx'}: {len(content)} bytes, from {len(corpus.examples)} tasks")
