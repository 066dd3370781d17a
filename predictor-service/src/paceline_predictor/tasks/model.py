"""Task forecasts: what the matcher says of a partial task, with the patterns and the levels learned so far."""

import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from time import time
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from paceline_core.tasks.forecast import StageForecast, TaskForecast
from paceline_core.tasks.graph import Stages, TaskGraph, app_code, stages_of
from paceline_core.tasks.pattern import PartialBatch, PatternTable, partials, pattern_of
from paceline_core.tasks.shapes import TOLD, Shape, shape_of
from paceline_predictor.tasks.levels import RAW_LEVELS, SHARPNESS, LevelMaps, log_pinball, places
from paceline_predictor.tasks.library import LibraryParams, PatternLibrary
from paceline_predictor.tasks.matcher import Matches, TaskMatcher
from paceline_predictor.tasks.shapes import ShapeCounts, Votes, winner

QUANTILES: Final = (0.1, 0.5, 0.9, 0.95)
"""Levels of every forecast."""
_P90: Final = 0.9
SCORED_STAGES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Stages at whose begin the forecast of a finished task is scored.

They do not depend on how many it had: cuts at parts of a task would score long tasks too rarely at each stage, and
forecasts of what comes would be taken for too long.
"""
_CUT_WEIGHT: Final = 0.25
"""Outcomes that one cut counts as: cuts of one task are alike."""
_UNLIKE: Final = 0.1
"""Similarity below which a forecast rests on the application, not on a pattern."""
_VOTES = 1 + len(SHARPNESS)
"""Ways in which a task's shape is voted on: by counts, and by patterns at each sharpness."""
_END_STRENGTH = 8.0
"""Tasks of the same shape so far that the matcher's probability of an end is worth."""
_MAGIC = b"PTS2"
_SIZES = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """A task that ended."""

    graph: TaskGraph
    completed: bool
    """It ran to its end."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """For people and monitors."""

    version: str
    observed: int
    """Tasks learned from while serving."""
    patterns: int
    coverage_p90: float
    """Over all tasks scored while serving; 0: not known yet."""
    file_bytes: int


class TaskModel:
    """Forecasts and learns.

    May be called from several threads; takes some milliseconds, so from none that is in a hurry.
    """

    def __init__(
        self,
        matcher: TaskMatcher | None,
        params: LibraryParams | None = None,
        *,
        clock: Callable[[], float] = time,
    ) -> None:
        """`clock`: unix seconds. Without a matcher it learns patterns only."""
        self.matcher = matcher
        """May be replaced at any time."""
        self._params = params or LibraryParams()
        self._clock = clock
        self._lock = threading.Lock()
        self._library = PatternLibrary(self._params)
        self._levels = LevelMaps()
        self._shapes = ShapeCounts(_VOTES, self._params.keep_per_hour)
        self._observed = 0
        self._held = self._scored = 0.0

    @property
    def library(self) -> PatternLibrary:
        """The patterns learned."""
        return self._library

    def forecast(self, graphs: Sequence[TaskGraph]) -> list[TaskForecast]:
        """What each task still needs; nothing without a matcher. Raises ModelFileError when the graph fails."""
        return self.forecast_stages([(graph.app, stages_of(graph)) for graph in graphs])

    def forecast_stages(self, tasks: Sequence[tuple[str, Stages]]) -> list[TaskForecast]:
        """The same for tasks that are folded into stages already."""
        matcher, wanted = self.matcher, np.array(QUANTILES)
        if matcher is None or not tasks:
            return []
        batch = partials(tasks)
        with self._lock:
            _, ids = self._library.table()
            table = self._library.trusted()
            raw = np.stack([self._levels.raw(app, wanted) for app in batch.apps.tolist()])
            coverage = [self._levels.coverage_p90(app) for app in batch.apps.tolist()]
            sharpness = np.array([SHARPNESS[self._levels.sharpness(app)] for app in batch.apps.tolist()])
        found = matcher.run(batch, table, raw.astype(np.float32), sharpness.astype(np.float32))
        with self._lock:
            last = [
                self._last_probability(int(batch.apps[i]), tasks[i][1], float(found.summary[i, 2]))
                for i in range(len(batch))
            ]
        found.summary[:, 2] = last
        sources = _sources(matcher.shipped, found, table, batch.apps, batch.stages)
        return [
            _value(found, i, sources[i], _name(matcher.shipped, found, ids, i), coverage[i], matcher.version)
            for i in range(len(batch))
        ]

    def likely_shape(self, app: str, stages: Stages) -> tuple[Shape, float] | None:
        """The shape that a partial task will most likely have, and its share of the votes; None: nobody knows."""
        code, seen = app_code(app), shape_of(stages)
        with self._lock:
            way = self._shapes.best_way(code)
            counted = self._shapes.votes(code, seen, stages.running)
        if way == 0 or self.matcher is None:
            return winner(counted)
        batch, half = partials([(app, stages)]), np.full((1, 1), 0.5, dtype=np.float32)
        with self._lock:
            table = self._library.trusted()
            shapes = self._library.shapes()
        sharp = np.array([SHARPNESS[way - 1]], dtype=np.float32)
        found = self.matcher.run(batch, table, half, sharp)
        return winner(_pattern_votes(self.matcher.shipped, found, 0, shapes, counted)) or winner(counted)

    def observe(self, outcome: TaskOutcome) -> bool:
        """Score the forecasts of a task that ended, then learn from it. False when it holds nothing to learn."""
        if not outcome.completed:
            return False
        stages = stages_of(outcome.graph)
        if not len(stages) or not stages.model_calls.any():
            return False
        if self.matcher is not None:
            self._score(self.matcher, outcome.graph.app, stages)
        return self._learn(outcome.graph.app, stages)

    def learn_again(self, outcome: TaskOutcome) -> bool:
        """Learn from a task that was scored before: into a state that was loaded after it."""
        stages = stages_of(outcome.graph)
        return bool(len(stages)) and self._learn(outcome.graph.app, stages)

    def report(self) -> TaskReport:
        """What is to be said about the model."""
        coverage = self._held / self._scored if self._scored >= 1 else 0.0
        version = self.matcher.version if self.matcher is not None else ""
        size = self.matcher.file_bytes if self.matcher is not None else 0
        return TaskReport(version, self._observed, len(self._library), coverage, size)

    def snapshot(self) -> Callable[[], bytes]:
        """All that was learned; the call that it returns may be made in a thread."""
        with self._lock:
            parts = (
                self._library.to_bytes(),
                self._levels.to_json().encode(),
                self._shapes.to_json().encode(),
            )
        return lambda: _MAGIC + _SIZES.pack(*map(len, parts)) + b"".join(parts)

    def decoded(self, state: bytes) -> Callable[[], None]:
        """Read a state; the call that it returns takes it over. Raises ValueError when it cannot be used."""
        at = len(_MAGIC) + _SIZES.size
        if len(state) < at or state[: len(_MAGIC)] != _MAGIC:
            raise ValueError("not a saved state of tasks, or of another version")
        sizes = _SIZES.unpack_from(state, len(_MAGIC))
        if len(state) != at + sum(sizes):
            raise ValueError("the saved state of tasks has another size than it says")
        edges = list(accumulate(sizes, initial=at))
        patterns, levels, shapes = (state[a:b] for a, b in pairwise(edges))
        library = PatternLibrary.from_bytes(patterns, self._params)
        maps = LevelMaps.from_json(levels)
        counts = ShapeCounts.from_json(shapes, _VOTES, self._params.keep_per_hour)

        def take_over() -> None:
            with self._lock:
                self._library, self._levels, self._shapes = library, maps, counts

        return take_over

    def _score(self, matcher: TaskMatcher, app: str, stages: Stages) -> None:
        cuts = [stage for stage in SCORED_STAGES if stage <= len(stages)]
        ways = len(SHARPNESS)
        half = stages.first((len(stages) + 1) // 2)
        # For each way the begins of stages, then the task half done, whose shape is voted on.
        partial = [*(stages.begun(cut) for cut in cuts), half]
        once = partials([(app, part) for part in partial])
        columns = (getattr(once, name) for name in PartialBatch.__slots__)
        batch = PartialBatch(*(np.concatenate([column] * ways) for column in columns))
        code = app_code(app)
        with self._lock:
            table = self._library.trusted()
            shapes = self._library.shapes()
            counted = self._shapes.votes(code, shape_of(half), running=False)
            p90 = self._levels.raw(code, np.array([_P90]))
            used = self._levels.sharpness(code)
        levels = np.tile(np.concatenate([RAW_LEVELS, p90]).astype(np.float32), (len(batch), 1))
        sharpness = np.repeat(np.array(SHARPNESS, dtype=np.float32), len(partial))
        found = matcher.run(batch, table, levels, sharpness)
        quantiles = found.critical_tokens.astype(np.float64).reshape(ways, len(partial), -1)[:, :-1]
        truth = np.array([stages.critical_tokens[cut - 1 :].sum() for cut in cuts])
        held = (truth <= quantiles[used, :, -1]).astype(np.float64)
        losses = np.array([log_pinball(way[:, :-1], truth).mean() for way in quantiles])
        rows = [way * len(partial) + len(cuts) for way in range(ways)]
        votes = [counted, *(_pattern_votes(matcher.shipped, found, row, shapes, counted) for row in rows)]
        whole = shape_of(stages)
        hits = [float(best is not None and best[0] == whole) for best in map(winner, votes)]
        with self._lock:
            self._levels.learn(code, places(quantiles[used, :, :-1], truth), held, losses, _CUT_WEIGHT)
            self._shapes.learn(code, hits)
            self._held += float(held.sum())
            self._scored += len(cuts)

    def _last_probability(self, app: int, stages: Stages, matched: float) -> float:
        """That no stage follows: the matcher's word, and how tasks of the same shape so far went; holds the lock."""
        if not len(stages) or len(stages) > TOLD:
            return matched
        votes = self._shapes.votes(app, shape_of(stages), stages.running)
        over = sum(n for shape, n in votes.items() if len(shape) == 2 * len(stages))
        return (over + _END_STRENGTH * matched) / (sum(votes.values()) + _END_STRENGTH)

    def _learn(self, app: str, stages: Stages) -> bool:
        code, shape, now_s = app_code(app), shape_of(stages), self._clock()
        with self._lock:
            self._library.add(pattern_of(app, stages), now_s, crc32(shape))
            self._shapes.add(code, shape, now_s)
            self._observed += 1
        return True


def _pattern_votes(
    shipped: int, found: Matches, row: int, shapes: NDArray[np.uint32], possible: Votes
) -> Votes:
    """Mass of the mixture by shape, of those shapes that are possible. `shapes`: checksums by learned pattern."""
    place = found.nearest[row] - shipped
    live = place >= 0
    mass: dict[int, float] = {}
    for code, share in zip(shapes[place[live]].tolist(), found.mass[row][live].tolist(), strict=True):
        mass[code] = mass.get(code, 0.0) + share
    return {shape: mass[code] for shape in possible if (code := crc32(shape)) in mass}


def _sources(
    shipped: int, found: Matches, table: PatternTable, apps: NDArray[np.int64], seen: NDArray[np.float32]
) -> list[str]:
    """Where each answer mostly comes from."""
    live = found.nearest >= shipped
    place = np.maximum(found.nearest - shipped, 0)
    of_app = table.apps[place] if len(table) else np.zeros_like(place)
    own = (live & (of_app == apps[:, None]) & (apps[:, None] != 0)) * found.mass
    other = live * found.mass
    names = []
    for i in range(len(apps)):
        alike = found.summary[i, 3] >= _UNLIKE and seen[i] > 0
        if own[i].sum() >= 0.5:
            names.append("pattern" if alike else "app")
        else:
            names.append("pattern" if alike and other[i].sum() >= 0.5 else "prior")
    return names


def _name(shipped: int, found: Matches, ids: NDArray[np.uint64], row: int) -> str:
    best = int(found.nearest[row, 0])
    if found.summary[row, 3] <= 0:
        return ""
    return f"shipped-{best}" if best < shipped else f"learned-{int(ids[best - shipped])}"


def _value(found: Matches, i: int, source: str, pattern: str, coverage: float, version: str) -> TaskForecast:
    stages, calls, last, similarity = found.summary[i].tolist()
    coming = np.concatenate([found.coming_probability[i][:, None], found.coming[i]], axis=1).tolist()
    return TaskForecast(
        remaining_stages=stages,
        remaining_calls=calls,
        last_stage_probability=min(max(last, 0.0), 1.0),
        quantiles=QUANTILES,
        remaining_tokens=tuple(np.maximum.accumulate(found.tokens[i]).tolist()),
        critical_tokens=tuple(np.maximum.accumulate(found.critical_tokens[i]).tolist()),
        stage_shares=tuple(found.shares[i].tolist()),
        coming=tuple(StageForecast(*row) for row in coming),
        source=source,
        pattern=pattern,
        similarity=similarity,
        coverage_p90=coverage,
        model_version=version,
    )
