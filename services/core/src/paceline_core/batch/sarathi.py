"""First come, first served with chunked prefill under a token budget per step (Sarathi-Serve, OSDI'24, section 4)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.fcfs import arrival_order
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.view import BatchView, BoolArray, IntArray


def decodes(view: BatchView, rows: IntArray) -> BoolArray:
    """[R] True where nothing is left to prefill."""
    context = view.prompt_tokens[rows] + np.maximum(view.generated[rows] - 1, 0)
    return np.asarray(context <= view.kv_tokens[rows])


def prefill_tokens(view: BatchView, order: IntArray, token_budget: int) -> int:
    """Prompt tokens of a step that runs the head of `order`, when it may take `token_budget` tokens in all; 0: four
    prefill chunks of the engine, and its batch."""
    capacity = view.capacity
    chunk = max(1, capacity.prefill_chunk_tokens)
    budget = token_budget or 4 * chunk + capacity.max_batch
    head = order[: capacity.max_batch]
    decoding = int(np.count_nonzero(decodes(view, head)))
    # Whole chunks only, and at least one: a smaller piece would change how the engine splits the prompt.
    return max(chunk, (budget - decoding) // chunk * chunk)


@dataclass(frozen=True, slots=True)
class Sarathi:
    """By arrival; a step takes a token of every decoding request, and prompt chunks from what is left of its budget."""

    name: ClassVar[str] = "sarathi"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    token_budget: int = 0
    """Most tokens of one step, decode and prefill together; 0: four prefill chunks of the engine, and its batch."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        order = arrival_order(view)
        return BatchPlan(
            order=order,
            scores=view.arrival_ms[order],
            reasons=[PlanReason.ARRIVAL] * len(order),
            prefill_budget_tokens=prefill_tokens(view, order, self.token_budget),
        )
