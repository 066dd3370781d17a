"""Our forecasts as the service makes them: the ONNX file, the live library, the learned levels."""

from collections.abc import Sequence

from paceline_core.tasks.shapes import Shape
from paceline_lab.tasks.checkpoints import Checkpoint
from paceline_lab.tasks.dataset import TaskExample
from paceline_lab.tasks.rivals import RivalAnswer
from paceline_predictor.tasks.matcher import TaskMatcher
from paceline_predictor.tasks.model import QUANTILES, TaskModel, TaskOutcome

_P50, _P90 = QUANTILES.index(0.5), QUANTILES.index(0.9)
_NOW_S = 1.0


def model_of(model_file: bytes) -> TaskModel:
    """A task model whose clock stands still."""
    return TaskModel(TaskMatcher(model_file), clock=lambda: _NOW_S)


class Ours:
    """Answers like the rivals do."""

    def __init__(self, model: TaskModel) -> None:
        if model.matcher is None:
            raise ValueError("a model without a matcher answers nothing")
        self.model = model

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
        """The shape that the task will most likely have."""
        best = self.model.likely_shape(app, cut.stages)
        return best[0] if best else None
