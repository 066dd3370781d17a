"""Least laxity first (Mok, 1983), without what is out of reach."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.frames import (
    Waiting,
    at_frame_end,
    fill,
    full_step_ms,
    in_slot,
    listed,
    shortlist,
    steps_to_frame_end,
)
from paceline_core.batch.hopeless import triage
from paceline_core.batch.laxity import prefill_ms, time_left_ms
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import leading
from paceline_core.batch.sarathi import prefill_tokens
from paceline_core.batch.view import BatchView, FloatArray
from paceline_core.slo import SloClass


@dataclass(frozen=True, slots=True)
class LlfShed:
    """Whoever can wait least goes first, at the mean of its length; what is out of reach stands last or is shed.

    Laxity of those who wait falls together, and that of those who run stands still: without frames equals would take
    turns at each step.
    """

    name: ClassVar[str] = "llf-shed"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    frame_steps: int = 10
    """Steps between two looks at who runs; a slot that falls free is filled at once."""
    least_chance: float = 0.01
    """P(meet) under which a request counts as out of reach."""
    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        sorted_out = triage(view, now_ms, self.least_chance)
        stays = view.runnable()
        stays[sorted_out.shed] = False
        rows = np.flatnonzero(stays)
        laxity = self._laxity_at_zero(view)
        urgent = -view.priority.astype(np.int64)
        keys = (sorted_out.lost, urgent, laxity, view.arrival_ms, view.row_id)
        if not urgent.any():
            rows = shortlist(view, rows, np.where(sorted_out.lost, -np.inf, -laxity))
        waiting = Waiting(keys, lambda some, slots: leading(some, keys, slots))
        if at_frame_end(view, self.frame_steps):
            chosen = waiting.choose(rows, view.capacity.max_batch)
        else:
            chosen = fill(view, rows, in_slot(view) & ~sorted_out.lost, waiting)
        made = listed(view, rows, chosen, waiting, steps_to_frame_end(view, self.frame_steps))
        prefill = prefill_tokens(view, made.order, self.token_budget)
        triage_holds = sorted_out.steps(view, made.order[: view.capacity.max_batch], prefill)
        return BatchPlan(
            order=made.order,
            scores=laxity[made.order] - now_ms,
            reasons=[
                PlanReason.UNATTAINABLE if lost else PlanReason.LAXITY
                for lost in sorted_out.lost[made.order].tolist()
            ],
            prefill_budget_tokens=prefill,
            shed=sorted_out.shed,
            valid_for_steps=min(made.valid_for_steps, triage_holds),
        )

    def _laxity_at_zero(self, view: BatchView) -> FloatArray:
        """[N] Laxity, were it now 0 ms: the latest instant to begin."""
        tokens = np.where(view.slo_class == SloClass.LATENCY.value, 1.0, view.mean_left())
        return np.asarray(time_left_ms(view, 0.0) - prefill_ms(view) - tokens * full_step_ms(view))
