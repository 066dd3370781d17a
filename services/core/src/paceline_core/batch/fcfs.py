"""First come, first served, whole prompts first: the scheduling of early continuous batching."""

from dataclasses import dataclass
from typing import ClassVar

from paceline_core.batch.plan import UNLIMITED_TOKENS, BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import first_by, list_length
from paceline_core.batch.view import BatchView, IntArray


def arrival_order(view: BatchView) -> IntArray:
    """Runnable rows by priority (higher first), then arrival, then row id (so that ties are stable); as many as a list
    takes."""
    rows = view.runnable_rows()
    return first_by(view, rows, view.arrival_ms, list_length(view))


@dataclass(frozen=True, slots=True)
class Fcfs:
    """By arrival at the router. A due prompt is prefilled whole in one step: streams that run wait for it."""

    name: ClassVar[str] = "fcfs"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        order = arrival_order(view)
        return BatchPlan(
            order=order,
            scores=view.arrival_ms[order],
            reasons=[PlanReason.ARRIVAL] * len(order),
            prefill_budget_tokens=UNLIMITED_TOKENS,
        )
