"""Earliest deadline first (Liu and Layland, 1973), with chunked prefill."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.sarathi import Sarathi
from paceline_core.batch.view import BatchView, FloatArray
from paceline_core.slo import SloClass


def deadlines_ms(view: BatchView) -> FloatArray:
    """[N] One instant per request: first token (latency), last token (deadline), this call (task; else the whole task);
    infinite for best effort."""
    latency = view.slo_class == SloClass.LATENCY
    due = view.arrival_ms + np.where(latency, view.ttft_ms, view.e2e_ms)
    due = np.where(view.slo_class == SloClass.TASK, np.minimum(due, view.call_due_ms), due)
    return np.asarray(np.where(view.slo_class == SloClass.BEST_EFFORT, np.inf, due))


@dataclass(frozen=True, slots=True)
class Edf:
    """By deadline. That of a stream is its first token's: once started it stays ahead of later ones, so the order
    changes only with events. Best effort starves while anything with a deadline waits."""

    name: ClassVar[str] = "edf"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = np.flatnonzero(view.runnable())
        due = deadlines_ms(view)[rows]
        priority = -view.priority[rows].astype(np.int64)
        keep = np.lexsort((view.row_id[rows], view.arrival_ms[rows], due, priority))
        order, scores = rows[keep], due[keep]
        return BatchPlan(
            order=order,
            scores=scores,
            reasons=[
                PlanReason.DEADLINE if finite else PlanReason.NO_DEADLINE for finite in np.isfinite(scores)
            ],
            prefill_budget_tokens=Sarathi(self.token_budget).plan(view, now_ms).prefill_budget_tokens,
        )
