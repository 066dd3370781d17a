"""Progress bars on standard error, a bar for each stage of a long command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Report(Protocol):
    """How long work says how far it is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are over."""


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Report]:
    """A reporter that draws bars; on a pipe, or when quiet, none are drawn."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
            if bars.disable and not quiet:
                console.print(f"{stage} ({total} steps)", markup=False, highlight=False)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield report
