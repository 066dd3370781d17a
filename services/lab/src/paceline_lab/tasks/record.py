"""What a loader hands over."""

from dataclasses import dataclass

from paceline_core.tasks.graph import TaskGraph


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A finished task as it stands in a set."""

    family: str
    group: str
    """Unique in its set for tasks that must not be torn apart by a split: a session, a problem, a dialogue."""
    graph: TaskGraph
    stage_s: tuple[float, ...] | None = None
    """Wall time of each stage, seconds; None: not measured."""
