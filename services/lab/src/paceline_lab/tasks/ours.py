"""Our forecasts as the service makes them: the ONNX file, the live library, the learned levels."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from paceline_core.tasks.pattern import partials
from paceline_lab.tasks.checkpoints import Checkpoint
from paceline_lab.tasks.dataset import TaskExample
from paceline_lab.tasks.rivals import RivalAnswer
from paceline_lab.tasks.shapes import Shape, shape_of_cells
from paceline_predictor.tasks.levels import SHARPNESS
from paceline_predictor.tasks.matcher import TaskMatcher
from paceline_predictor.tasks.model import QUANTILES, TaskModel, TaskOutcome

_P50, _P90 = QUANTILES.index(0.5), QUANTILES.index(0.9)
_NOW_S = 1.0
_SHARP = np.array([SHARPNESS[-1]], dtype=np.float32)


def model_of(model_file: bytes) -> TaskModel:
    """A task model whose clock stands still."""
    return TaskModel(TaskMatcher(model_file), clock=lambda: _NOW_S)


class Ours:
    """Answers like the rivals do."""

    def __init__(self, model: TaskModel) -> None:
        if model.matcher is None:
            raise ValueError("a model without a matcher answers nothing")
        self.model = model
        self._matcher = model.matcher

    def learn(self, history: Sequence[TaskExample]) -> None:
        """Tasks in the order in which they ended."""
        for example in history:
            self.model.observe(TaskOutcome(example.graph, completed=True))

    def answers(self, app: str, cuts: Sequence[Checkpoint]) -> list[RivalAnswer]:
        """All cuts in one run."""
        found = self.model.forecast_stages([(app, cut.stages) for cut in cuts])
        return [
            RivalAnswer(
                f.critical_tokens[_P50],
                f.critical_tokens[_P90],
                f.stage_shares[0],
                float("nan"),
                f.last_stage_probability,
                None,
            )
            for f in found
        ]

    def shape(self, app: str, cut: Checkpoint) -> Shape | None:
        """The shape that most of the mixture has."""
        matcher = self._matcher
        table, _ = self.model.library.table()
        half = np.full((1, 1), 0.5, dtype=np.float32)
        found = matcher.run(partials([(app, cut.stages)]), table, half, _SHARP)
        mass: dict[Shape, float] = defaultdict(float)
        for place, share in zip(found.nearest[0] - matcher.shipped, found.mass[0], strict=True):
            if place >= 0:
                mass[shape_of_cells(table.stages[place], table.cells[place])] += float(share)
        return max(mass, key=lambda shape: mass[shape]) if mass else None
