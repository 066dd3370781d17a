"""Finished tasks from public data, and how they are split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from paceline_core.tasks.graph import Stages, TaskGraph, stages_of
from paceline_lab.tasks.loaders import (
    acr,
    agent_sessions,
    chatdev,
    claude_code,
    deep_research,
    sql_agents,
    tree_of_thought,
)
from paceline_lab.tasks.record import TaskRecord


@dataclass(frozen=True, slots=True)
class TaskExample:
    """A finished task, folded into stages."""

    source: str
    family: str
    group: str
    """Tasks of one group stand on the same side of every split."""
    app: str
    permissive: bool
    graph: TaskGraph
    stages: Stages
    stage_s: tuple[float, ...] | None
    """Wall time of each stage where it was measured, seconds."""


@dataclass(frozen=True, slots=True)
class TaskCorpus:
    """All tasks that were found, and what was not."""

    examples: tuple[TaskExample, ...]
    missing: tuple[str, ...]
    """One sentence for each set that is not there or cannot be read."""

    def permissive(self) -> "TaskCorpus":
        """Those that may train a model that ships."""
        return TaskCorpus(tuple(e for e in self.examples if e.permissive), self.missing)


@dataclass(frozen=True, slots=True)
class Source:
    """A set: where it lies, what it may be used for, and who reads it."""

    folder: str
    licence: str
    permissive: bool
    read: Callable[[Path], list[TaskRecord]]


SOURCES = (
    Source("jitserve-deepresearch", "Apache-2.0", True, deep_research.read),
    Source("tot-logs", "MIT", True, tree_of_thought.read),
    Source("lmcache-agent-trace", "Apache-2.0", True, agent_sessions.read),
    Source("claude-code-traces", "Apache-2.0", True, claude_code.read),
    Source("acr-swe-calls", "AGPL-3.0 or commercial; numbers only", False, acr.read),
    Source("chatdev-calls", "CC BY-NC 4.0; numbers only", False, chatdev.read),
    Source("mmsql-multiagent", "none stated; numbers only", False, sql_agents.read),
)


def load(data: Path, *, sets: Sequence[str] | None = None) -> TaskCorpus:
    """Read all sets under `data`, or those named. A set that is missing or broken is told, not fatal."""
    examples: list[TaskExample] = []
    missing: list[str] = []
    for source in SOURCES:
        if sets is not None and source.folder not in sets:
            continue
        folder = data / source.folder
        if not folder.is_dir():
            missing.append(
                f"{source.folder}: no folder {folder}; the README of the data says where it comes from"
            )
            continue
        try:
            records = source.read(folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            missing.append(f"{source.folder}: cannot be read: {type(error).__name__}: {error}")
            continue
        for record in records:
            stages = stages_of(record.graph)
            if not len(stages):
                continue
            stage_s = record.stage_s if record.stage_s and len(record.stage_s) == len(stages) else None
            examples.append(
                TaskExample(
                    source.folder,
                    record.family,
                    f"{source.folder}/{record.group}",
                    record.graph.app,
                    source.permissive,
                    record.graph,
                    stages,
                    stage_s,
                )
            )
    return TaskCorpus(tuple(examples), tuple(missing))


def fold_of(group: str, folds: int, seed: int = 0) -> int:
    """The fold of a group of tasks: the same on every machine."""
    return int.from_bytes(sha1(f"{seed}:{group}".encode(), usedforsecurity=False).digest()[:8]) % folds
