"""How far a long command is, on standard error: a bar for each stage, or lines where nobody watches a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_APART_S = 5.0
"""Lines of a stage are at least so far apart, but for its first and its last one."""


class Report(Protocol):
    """How long work says how far it is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are over."""


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Report]:
    """A reporter that draws bars; into a pipe or a file it writes lines; when quiet, nothing."""
    console = Console(stderr=True)
    if quiet or console.is_terminal:
        with _bars(console, quiet) as report:
            yield report
    else:
        yield ProgressLines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


class ProgressLines:
    """A `Report` in lines: what is done, the time since the stage began, and about how long the rest takes."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._say = say
        self._clock = clock
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are over."""
        now = self._clock()
        began = self._began.setdefault(stage, now)
        if stage not in self._said and not done:
            self._said[stage] = now
            self._say(f"{stage} ({total} steps)")
        elif done and (done >= total or now - self._said.get(stage, began - _APART_S) >= _APART_S):
            self._said[stage] = now
            elapsed_s = now - began
            left = f", about {_minutes(elapsed_s / done * (total - done))} left" if done < total else ""
            self._say(f"{stage}: {done} of {total}, {_minutes(elapsed_s)} so far{left}")


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


@contextmanager
def _bars(console: Console, quiet: bool) -> Iterator[Report]:
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield report
