"""What every training and evaluation command needs first: its libraries and its data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from paceline_cli.errors import EXIT_USAGE
from paceline_cli.errors_base import CommandError

_LIBRARIES = ("sklearn", "quantile_forest", "onnx", "scipy")


@contextmanager
def training_libraries() -> Iterator[None]:
    """Turns a missing training library into what to do about it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        raise CommandError(
            f"{error.name} is not installed; training and evaluating need more than serving: run `make setup-train`"
        ) from None


def needs_data(data: Path | None, what: str) -> Path:
    """The folder of data sets; ends the command with code 2 and what to get where, when there is none."""
    from paceline_lab.lengths.sources import how_to_obtain

    if data is not None and data.is_dir() and any(data.iterdir()):
        return data
    missing = "no --data folder was given" if data is None else f"{data}: no such folder, or an empty one"
    typer.echo(f"paceline: {missing}.\n{how_to_obtain(what)}", err=True)
    raise typer.Exit(EXIT_USAGE)


def shipped_collection(given: Path | None) -> Path | None:
    """Collected outputs to use: those that were named, else those beside the shipped model, else none."""
    import paceline_predictor

    if given is not None:
        return given
    shipped = Path(paceline_predictor.__file__).parent / "models" / "collected.jsonl.xz"
    return shipped if shipped.exists() else None


@contextmanager
def too_little_data() -> Iterator[None]:
    """Ends the command with code 2 when the folder has too few examples, with what is missing and where it is."""
    from paceline_lab.lengths.evaluate import TooLittleDataError
    from paceline_lab.lengths.sources import how_to_obtain

    try:
        yield
    except TooLittleDataError as error:
        typer.echo(f"paceline: {error}.\n{how_to_obtain('length')}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
