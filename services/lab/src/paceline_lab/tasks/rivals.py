"""What forecasts are compared with. Each is given the whole history of the application, without a bound.

`jitserve`: the partial graph against histories by a Gaussian kernel on raw attributes (input length, output length,
fan-out, model), the best match taken; the deadline of stage s is `phi(s) * D` with `phi(s) = t(<= s) / t(total)` of the
match. A product of Gaussian kernels has its best match at the least sum of squares, whatever its width, so the
unpublished width needs no choice. `jitserve-artifact`: as released, width of one token, graphs of unequal stage
counts are not compared. `app-mean`: what the application's tasks that got this far still needed. `equal`: equal
shares of the stages that they still had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline_core.tasks.graph import Stages
from paceline_lab.tasks.checkpoints import Checkpoint
from paceline_lab.tasks.dataset import TaskExample

Floats = NDArray[np.float64]
_MOST_STAGES = 64
_WIDTH_TOKENS = 1.0


@dataclass(frozen=True, slots=True)
class RivalAnswer:
    """What a rival says of a partial task."""

    critical_tokens: float
    critical_p90: float
    share: float
    """Of the current stage in the work to come."""
    phi: float
    """Share of the whole time by which the current stage has to end; nan: the rival plans by `share`."""
    last_probability: float
    match: TaskExample | None


class Rival(Protocol):
    """Learns from finished tasks of one application, answers for one partial task."""

    name: str

    def fit(self, history: Sequence[TaskExample]) -> None:
        """Take a history."""

    def answer(self, cut: Checkpoint) -> RivalAnswer:
        """What is still to come."""


@dataclass
class JitServe:
    """See the module. `stamps`: phi from measured wall times instead of work."""

    name: str = "jitserve"
    same_stage_count: bool = False
    stamps: bool = False
    _history: list[TaskExample] = field(default_factory=list)
    _columns: Floats = field(default_factory=lambda: np.zeros((0, 0, 4)))
    _lengths: Floats = field(default_factory=lambda: np.zeros(0))

    def fit(self, history: Sequence[TaskExample]) -> None:
        self._history = list(history)
        self._columns = np.stack([_columns(e.stages) for e in history]) if history else np.zeros((0, 0, 4))
        self._lengths = np.array([len(e.stages) for e in history], dtype=np.float64)

    def answer(self, cut: Checkpoint) -> RivalAnswer:
        if not self._history:
            return RivalAnswer(0.0, 0.0, 1.0, 1.0, 0.0, None)
        n = min(cut.seen, _MOST_STAGES)
        mine = _columns(cut.stages)[:n]
        gap = self._columns[:, :n] - mine
        square = gap[..., 0] ** 2 + gap[..., 2] ** 2
        out = gap[..., 1] ** 2
        if cut.running and n == cut.seen:
            out[:, -1] = 0.0
        cost = (square + out).sum(axis=1) / (2 * _WIDTH_TOKENS**2)
        cost = cost + np.where((gap[..., 3] != 0).any(axis=1), 1e12, 0.0)
        if self.same_stage_count:
            similar = np.where(self._lengths == cut.seen, np.exp(-np.minimum(cost, 700.0)), 0.0)
            best = int(similar.argmax())
        else:
            best = int(np.where(self._lengths >= cut.seen, cost, np.inf).argmin())
        match = self._history[best]
        work = match.stages.critical_tokens
        times = np.array(match.stage_s) if self.stamps and match.stage_s is not None else work
        done = cut.seen - int(cut.running)
        total = float(times.sum())
        before, upto = float(times[:done].sum()), float(times[: done + 1].sum())
        phi = upto / total if total > 0 else 1.0
        share = (upto - before) / (total - before) if total > before else 1.0
        rest = float(work[done:].sum())
        return RivalAnswer(rest, rest, share, phi, float(len(work) == cut.seen), match)


@dataclass
class AppMean:
    """Means over tasks of the application that got this far; `even` shares the work out equally."""

    name: str = "app-mean"
    even: bool = False
    _work: list[Floats] = field(default_factory=list)

    def fit(self, history: Sequence[TaskExample]) -> None:
        self._work = [e.stages.critical_tokens for e in history]

    def answer(self, cut: Checkpoint) -> RivalAnswer:
        done = cut.seen - int(cut.running)
        alive = [w for w in self._work if len(w) >= cut.seen] or self._work
        if not alive:
            return RivalAnswer(0.0, 0.0, 1.0, float("nan"), 0.0, None)
        rest = np.array([w[done:].sum() for w in alive])
        now = np.array([w[done] if len(w) > done else 0.0 for w in alive])
        left = float(np.mean([max(len(w) - done, 0) for w in alive]))
        share = 1.0 / max(left, 1.0) if self.even else float(now.sum() / rest.sum()) if rest.sum() else 1.0
        last = float(np.mean([len(w) <= cut.seen for w in alive]))
        p50, p90 = np.quantile(rest, (0.5, 0.9))
        return RivalAnswer(float(p50), float(p90), share, float("nan"), last, None)


def rivals() -> list[Rival]:
    """All, fresh."""
    return [
        JitServe(),
        JitServe("jitserve-stamps", stamps=True),
        JitServe("jitserve-artifact", same_stage_count=True),
        AppMean(),
        AppMean("equal", even=True),
    ]


def _columns(stages: Stages) -> Floats:
    """float64[_MOST_STAGES, 4]: input, output, calls, actors."""
    columns = np.zeros((_MOST_STAGES, 4))
    n = min(len(stages), _MOST_STAGES)
    for at, name in enumerate(("input_tokens", "output_tokens", "model_calls", "actors")):
        columns[:n, at] = getattr(stages, name)[:n]
    return columns
