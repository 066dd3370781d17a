"""Shortest job first, by predicted length: what JITServe's ablation runs in place of GMAX."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.frames import (
    Waiting,
    at_frame_end,
    fill,
    in_slot,
    listed,
    quantised,
    shortlist,
    steps_to_frame_end,
)
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import leading
from paceline_core.batch.sarathi import prefill_tokens
from paceline_core.batch.view import BatchView, FloatArray


@dataclass(frozen=True, slots=True)
class Sjf:
    """Fewest tokens still to come first, at the upper level of the estimate. Preempts at frame ends only, looks at
    estimates as often as `gmax` does, and is blind to targets."""

    name: ClassVar[str] = "sjf"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    frame_steps: int = 50
    """Steps between two looks at who runs; a slot that falls free is filled at once."""
    estimate_every_tokens: int = 50
    """Output tokens between two looks at a request's remaining length."""
    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = view.runnable_rows()
        left = self._tokens_left(view)
        keys = (-view.priority.astype(np.int64), left, view.arrival_ms, view.row_id)
        if not view.priority.any():
            rows = shortlist(view, rows, -left)
        waiting = Waiting(keys, lambda some, slots: leading(some, keys, slots))
        if at_frame_end(view, self.frame_steps):
            chosen = waiting.choose(rows, view.capacity.max_batch)
        else:
            chosen = fill(view, rows, in_slot(view), waiting)
        made = listed(view, rows, chosen, waiting, steps_to_frame_end(view, self.frame_steps))
        return BatchPlan(
            order=made.order,
            scores=left[made.order],
            reasons=[PlanReason.SHORTEST] * len(made.order),
            prefill_budget_tokens=prefill_tokens(view, made.order, self.token_budget),
            valid_for_steps=made.valid_for_steps,
        )

    def _tokens_left(self, view: BatchView) -> FloatArray:
        asked = quantised(view, self.estimate_every_tokens)
        return np.maximum(view.lengths.upper_left(view.row_id, asked) - (view.generated - asked), 1.0)


@dataclass(frozen=True, slots=True)
class SjfMean(Sjf):
    """`sjf` by the mean of the estimate."""

    name: ClassVar[str] = "sjf-mean"

    def _tokens_left(self, view: BatchView) -> FloatArray:
        asked = quantised(view, self.estimate_every_tokens)
        return np.maximum(view.lengths.mean_left(view.row_id, asked) - (view.generated - asked), 1.0)
