"""A finished task as a pattern of at most 168 bytes, and a partial task in the same coordinates.

A pattern has P = 24 positions: the first 12 stages each have their own, later ones share positions whose width
grows, so that a chain of thousands of stages keeps its form. A position holds means over its stages, and so a group
that a partial task has only half filled compares with a whole one. Numbers are bytes on a log scale (error at most 3
%).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.tasks.graph import MAX_CALLS, Stages, app_code

P: Final = 24
"""Positions of a pattern."""
SINGLE: Final = 12
"""Stages that have a position of their own."""
NUMBERS: Final = ("model_calls", "tool_calls", "input_tokens", "output_tokens", "critical_tokens", "tool_ms")
"""Numeric attributes of a stage, in the order of the bytes; the code of its actors follows them."""
A: Final = len(NUMBERS)
MODEL_CALLS, TOOL_CALLS, INPUT, OUTPUT, CRITICAL, TOOL_MS = range(A)
BYTES_A_PATTERN: Final = P * (A + 1)

_STEPS_A_NAT: Final = np.array([32.0, 32.0, 16.0, 16.0, 16.0, 16.0])
"""Byte steps per unit of log(1 + x): counts reach 2,890, tokens and milliseconds 8 million."""
LOG_OF_BYTE: Final = (1.0 / _STEPS_A_NAT).astype(np.float32)


def _edges() -> NDArray[np.int64]:
    """First stage of each position, and one past the last stage: int64[P + 1]."""
    groups = P - SINGLE
    wide = [round(SINGLE * (MAX_CALLS / SINGLE) ** (i / groups)) for i in range(1, groups + 1)]
    edges = [*range(SINGLE + 1)]
    for edge in wide:
        edges.append(max(edge, edges[-1] + 1))
    return np.array(edges, dtype=np.int64)


EDGES: Final = _edges()
FIRST: Final = EDGES[:-1].astype(np.float32)
PAST: Final = EDGES[1:].astype(np.float32)


def _actor_points() -> NDArray[np.float32]:
    """float32[256, 4]: a fixed unit vector for each code of actors; none for code 0."""
    points = np.random.default_rng(20504068).standard_normal((256, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[0] = 0.0
    return points.astype(np.float32)


ACTOR_POINTS: Final = _actor_points()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A finished task."""

    app: int
    """`app_code` of its application."""
    stages: int
    cells: NDArray[np.uint8]
    """uint8[P, A + 1]."""


@dataclass(frozen=True, slots=True)
class PatternTable:
    """M patterns as columns."""

    cells: NDArray[np.uint8]
    """uint8[M, P, A + 1]."""
    stages: NDArray[np.float32]
    """float32[M]."""
    apps: NDArray[np.int64]
    """int64[M]."""
    weights: NDArray[np.float32]
    """float32[M]: how many tasks each stands for."""

    def __len__(self) -> int:
        return len(self.stages)


@dataclass(frozen=True, slots=True)
class PartialBatch:
    """B partial tasks as columns."""

    values: NDArray[np.float32]
    """float32[B, P, A]: log(1 + mean) of what is known."""
    known: NDArray[np.float32]
    """float32[B, P, A]: 1 where a value is known."""
    actors: NDArray[np.int64]
    """int64[B, P]: codes; 0: not known, or several in one position."""
    stages: NDArray[np.float32]
    """float32[B]: stages seen, the running one included."""
    running: NDArray[np.float32]
    """float32[B]: 1 if the last stage has not ended."""
    done_critical: NDArray[np.float32]
    """float32[B]: critical-path tokens of the stages that ended."""
    out: NDArray[np.float32]
    """float32[B, 3]: model calls, tokens and critical-path tokens of the running stage so far."""
    apps: NDArray[np.int64]
    """int64[B]: `app_code`s."""

    def __len__(self) -> int:
        return len(self.stages)


def pattern_of(app: str, stages: Stages) -> Pattern:
    """The pattern of a finished task. Raises ValueError when it has no stage."""
    if not len(stages):
        raise ValueError("a task without calls has no pattern")
    means, _ = _means(stages)
    cells = np.zeros((P, A + 1), dtype=np.uint8)
    cells[:, :A] = np.clip(np.rint(np.log1p(means) * _STEPS_A_NAT), 0, 255)
    cells[:, A] = _position_actors(stages)
    return Pattern(app_code(app), len(stages), cells)


def table_of(patterns: Sequence[Pattern], weights: Sequence[float] | None = None) -> PatternTable:
    """Columns of patterns; without weights each stands for one task."""
    n = len(patterns)
    return PatternTable(
        np.array([p.cells for p in patterns], dtype=np.uint8).reshape(n, P, A + 1),
        np.array([p.stages for p in patterns], dtype=np.float32),
        np.array([p.app for p in patterns], dtype=np.int64),
        np.ones(n, dtype=np.float32) if weights is None else np.array(weights, dtype=np.float32),
    )


def partials(tasks: Sequence[tuple[str, Stages]]) -> PartialBatch:
    """Partial tasks as (app, stages so far)."""
    b = len(tasks)
    values = np.zeros((b, P, A), dtype=np.float32)
    known = np.zeros((b, P, A), dtype=np.float32)
    actors = np.zeros((b, P), dtype=np.int64)
    scalars = np.zeros((6, b), dtype=np.float32)
    for i, (_, stages) in enumerate(tasks):
        n, running = len(stages), stages.running
        if not n:
            continue
        means, filled = _means(stages)
        values[i] = np.log1p(means)
        known[i, :filled] = 1.0
        if running:
            # Its outputs, its tools' times and how many calls it gets are not known yet.
            last = int(np.searchsorted(EDGES, n - 1, side="right")) - 1
            last = min(last, P - 1)
            known[i, last, [MODEL_CALLS, TOOL_CALLS, OUTPUT, CRITICAL, TOOL_MS]] = 0.0
        actors[i] = _position_actors(stages)
        ended = n - int(running)
        scalars[:3, i] = n, running, stages.critical_tokens[:ended].sum()
        if running:
            scalars[3:, i] = stages.model_calls[-1], stages.output_tokens[-1], stages.critical_tokens[-1]
    return PartialBatch(
        values,
        known,
        actors,
        stages=scalars[0],
        running=scalars[1],
        done_critical=scalars[2],
        out=np.ascontiguousarray(scalars[3:].T),
        apps=np.array([app_code(app) for app, _ in tasks], dtype=np.int64),
    )


def _means(stages: Stages) -> tuple[NDArray[np.float64], int]:
    """Mean of each attribute over the stages of each position, float64[P, A], and how many positions are filled."""
    columns = np.stack([getattr(stages, name) for name in NUMBERS], axis=1)
    columns = np.clip(np.nan_to_num(columns), 0, 1e7)
    n = len(columns)
    filled = min(int(np.searchsorted(EDGES, n, side="left")), P)
    means = np.zeros((P, A))
    means[:filled] = np.add.reduceat(columns, EDGES[:filled], axis=0)
    past = np.minimum(EDGES[1 : filled + 1], n)
    past[-1] = n
    means[:filled] /= (past - EDGES[:filled])[:, None]
    return means, filled


def _position_actors(stages: Stages) -> NDArray[np.uint8]:
    """uint8[P]: the code of each position; 0 where its stages differ."""
    codes = np.zeros(P, dtype=np.uint8)
    n = len(stages)
    if n:
        filled = min(int(np.searchsorted(EDGES, n, side="left")), P)
        least, most = (f.reduceat(stages.actors, EDGES[:filled]) for f in (np.minimum, np.maximum))
        codes[:filled] = np.where(least == most, least, 0)
    return codes
