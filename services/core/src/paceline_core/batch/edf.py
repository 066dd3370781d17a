"""Earliest deadline first (Liu and Layland, 1973), with chunked prefill."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.hopeless import triage
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import first_by, list_length
from paceline_core.batch.sarathi import prefill_tokens
from paceline_core.batch.view import BatchView, FloatArray
from paceline_core.slo import SloClass


def deadlines_ms(view: BatchView) -> FloatArray:
    """[N] One instant per request: first token (latency), last token (deadline), this call (task; else the whole task);
    infinite for best effort."""
    due = np.minimum(
        view.arrival_ms + view.ttft_ms + view.e2e_ms, view.call_due_ms
    )  # one of the budgets is 0
    due[view.slo_class == SloClass.BEST_EFFORT.value] = np.inf
    return np.asarray(due)


def _reasons(due_ms: FloatArray) -> list[PlanReason]:
    return [PlanReason.DEADLINE if due < np.inf else PlanReason.NO_DEADLINE for due in due_ms.tolist()]


@dataclass(frozen=True, slots=True)
class Edf:
    """By deadline. That of a stream is its first token's: once started it stays ahead of later ones, so the order
    changes only with events. Best effort starves while anything with a deadline waits."""

    name: ClassVar[str] = "edf"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = view.runnable_rows()
        due = deadlines_ms(view)
        order = first_by(view, rows, due, list_length(view))
        return BatchPlan(
            order=order,
            scores=due[order],
            reasons=_reasons(due[order]),
            prefill_budget_tokens=prefill_tokens(view, order, self.token_budget),
        )


@dataclass(frozen=True, slots=True)
class EdfShed:
    """`edf` without its overload disease: what is out of reach stands last, or is shed where its client wants that."""

    name: ClassVar[str] = "edf-shed"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""
    least_chance: float = 0.01
    """P(meet) under which a request counts as out of reach."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        due = deadlines_ms(view)
        sorted_out = triage(view, now_ms, self.least_chance)
        order, hopeful = sorted_out.split(view, due)
        prefill = prefill_tokens(view, order, self.token_budget)
        return BatchPlan(
            order=order,
            scores=due[order],
            reasons=_reasons(due[order[:hopeful]]) + [PlanReason.UNATTAINABLE] * (len(order) - hopeful),
            prefill_budget_tokens=prefill,
            shed=sorted_out.shed,
            valid_for_steps=sorted_out.steps(view, order[: view.capacity.max_batch], prefill),
        )
