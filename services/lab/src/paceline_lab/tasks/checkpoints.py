"""Partial tasks cut from finished ones, with what then still came."""

from collections.abc import Iterator
from dataclasses import dataclass

from paceline_core.tasks.graph import Stages
from paceline_lab.tasks.dataset import TaskExample
from paceline_predictor.tasks.model import SCORED_STAGES


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A task at the end of a stage, or at the begin of one."""

    example: int
    seen: int
    """Stages seen, the running one included."""
    running: bool
    """The last stage seen has begun and written nothing yet."""
    stages: Stages
    """What is known."""
    critical_tokens: float
    """To come along the critical path."""
    tokens: float
    """To come in all."""
    stages_left: int
    """That have not ended."""
    calls_left: float
    """Model calls that have not begun."""
    share: float
    """Of the critical work to come: the current stage's; nan when nothing comes."""


def checkpoint(example: TaskExample, number: int, seen: int, running: bool) -> Checkpoint:
    """A task after `seen` stages, or when stage `seen` (from 1) has just begun with all its calls."""
    whole = example.stages
    done = seen - int(running)
    critical = whole.critical_tokens[done:]
    total = float(critical.sum())
    return Checkpoint(
        number,
        seen,
        running,
        whole.begun(seen) if running else whole.first(seen),
        total,
        float(whole.output_tokens[done:].sum()),
        len(whole) - done,
        float(whole.model_calls[seen:].sum()),
        float(critical[0] / total) if total > 0 else float("nan"),
    )


def checkpoints(example: TaskExample, number: int) -> Iterator[Checkpoint]:
    """A task as it stood after each of SCORED_STAGES, and at its begin."""
    for seen in SCORED_STAGES:
        if seen <= len(example.stages):
            yield checkpoint(example, number, seen, running=False)
            yield checkpoint(example, number, seen, running=True)
