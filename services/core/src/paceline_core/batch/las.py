"""Least attained service first, in buckets (Nuyens and Wierman, 2008; for language models: FastServe, Autellix)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.plan import UNTIL_EVENT, BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import first_by, list_length
from paceline_core.batch.sarathi import decodes, prefill_tokens
from paceline_core.batch.view import BatchView


@dataclass(frozen=True, slots=True)
class Las:
    """Whoever has the fewest output tokens goes first; in a bucket, by arrival. Blind to lengths and targets."""

    name: ClassVar[str] = "las"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    bucket_tokens: int = 400
    """Output tokens that count as the same service: without buckets equals would take turns at each step."""
    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = view.runnable_rows()
        bucket = max(1, self.bucket_tokens)
        level = view.generated // bucket
        order = first_by(view, rows, level, list_length(view))
        head = order[: view.capacity.max_batch]
        decoding = head[decodes(view, head)]
        to_next = bucket - view.generated[decoding] % bucket
        return BatchPlan(
            order=order,
            scores=level[order].astype(np.float64),
            reasons=[PlanReason.ATTAINED] * len(order),
            prefill_budget_tokens=prefill_tokens(view, order, self.token_budget),
            valid_for_steps=int(to_next.min(initial=UNTIL_EVENT)),
        )
