"""Tasks as the service sees them: the model file in use, forecasts and outcomes off the event loop, one state."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from paceline_core.tasks.forecast import TaskForecast
from paceline_core.tasks.graph import TaskGraph
from paceline_predictor.onnx_file import MAX_MODEL_BYTES, ModelFileError, read_model_file, tried
from paceline_predictor.tasks.library import LibraryParams
from paceline_predictor.tasks.matcher import TaskMatcher
from paceline_predictor.tasks.model import TaskModel, TaskOutcome, TaskReport
from paceline_runtime.errors import PacelineError, Reason

_log = logging.getLogger(__name__)

TASKS = "tasks"
"""The part of tasks in the saved state."""
SHIPPED = Path(__file__).parent.parent / "models" / "tasks.onnx"
NO_FILE = "none"
_TRIAL = "paceline_predictor.tasks.trial"
_AT_ONCE = 32
"""Tasks in one run of the graph: its memory grows with them."""


class Learned(Protocol):
    """Told of what was learned; see `Keeper.learned`."""

    def __call__(self, name: str, outcomes: int, again: Callable[[], object]) -> None: ...


class TaskDesk:
    """Forecasts and learns from tasks. One call at a time works, in a thread; the others wait."""

    def __init__(
        self, path: str = "", params: LibraryParams | None = None, *, max_bytes: int = MAX_MODEL_BYTES
    ) -> None:
        """`path`: "" is the file that ships with the package, "none" does without forecasts."""
        self._path = None if path == NO_FILE else Path(path) if path else SHIPPED
        self._max_bytes = max_bytes
        self._turn = asyncio.Lock()
        self.model = TaskModel(None, params)
        self.warning = ""
        """Why there are no forecasts though there should be; empty: all is well."""

    async def load(self) -> None:
        """At the start: a file that cannot be used is warned of; patterns are learned all the same."""
        try:
            await self.reload()
        except ModelFileError as error:
            self.warning = f"no task model is in use: {error}"
            _log.warning("task model", extra={"problem": self.warning})

    async def reload(self) -> None:
        """Take the file as it is now. Raises ModelFileError when it cannot be used; the one in use stays."""
        if self._path is None:
            return
        self.model.matcher = await asyncio.to_thread(self._judged, self._path)
        self.warning = ""
        _log.info("task model", extra={"model_version": self.model.matcher.version})

    async def forecast(self, graphs: Sequence[TaskGraph]) -> list[TaskForecast]:
        """What each task still needs. Raises UNAVAILABLE without a model."""
        if self.model.matcher is None:
            raise PacelineError(Reason.UNAVAILABLE, self.warning or "no task model is configured")
        found: list[TaskForecast] = []
        for begin in range(0, len(graphs), _AT_ONCE):
            part = graphs[begin : begin + _AT_ONCE]
            async with self._turn:
                found.extend(await asyncio.to_thread(self.model.forecast, part))
        return found

    async def learn(self, outcomes: Sequence[TaskOutcome], learned: Learned) -> int:
        """Learn all, in order; returns how many held something to learn."""
        count = 0
        for outcome in outcomes:
            async with self._turn:
                useful = await asyncio.to_thread(self.model.observe, outcome)
            if useful:
                count += 1
                learned(TASKS, 1, partial(self.model.learn_again, outcome))
        return count

    def report(self) -> TaskReport | None:
        """What is to be said about the model; None: there is none."""
        return self.model.report() if self.model.matcher is not None else None

    def _judged(self, path: Path) -> TaskMatcher:
        content = read_model_file(path, self._max_bytes)
        try:
            if path != SHIPPED:
                tried(_TRIAL, content)
            return TaskMatcher(content)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
