"""What a batch policy answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np

from paceline_core.batch.view import FloatArray, IntArray

UNLIMITED_TOKENS: Final = 2**31 - 1
"""A prefill budget that no step can use up."""
UNTIL_EVENT: Final = 1_000_000
"""`valid_for_steps` of a plan that only an event can change."""
STEP_SLACK: Final = 1.5
"""A plan that depends on the time holds as long as steps take at most so many times what the view's model says."""


class PlanReason(StrEnum):
    """Why a request stands where it stands in a plan. Short, and stable: people and tools read them."""

    ARRIVAL = "arrival"
    DEADLINE = "deadline"
    NO_DEADLINE = "no_deadline"
    ATTAINED = "least_attained_service"
    SHORTEST = "shortest"
    LAXITY = "least_laxity"
    GOODPUT = "goodput_per_time"
    IN_FRAME = "runs_to_frame_end"
    ADMITTED = "admitted"
    UNATTAINABLE = "unattainable"
    ISOLATED = "isolated"
    CREDIT = "waits_for_credit"
    BEHIND_ISOLATED = "waits_for_isolated"
    NO_KV_ROOM = "waits_for_kv"
    BEYOND_LIST = "beyond_list"
    URGENT = "urgent"
    WANTED = "wanted"
    SPARE = "spare"
    AHEAD = "ahead_of_timeline"
    HOPELESS = "hopeless"


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """An ordered list, longer than the batch, and the limits of each step. Indexes are rows of the view (0..N-1)."""

    order: IntArray
    """[M] Rows, most wanted first; no duplicates, runnable rows only."""
    scores: FloatArray
    """[M] The policy's score of each row in `order`; its meaning is the policy's."""
    reasons: Sequence[PlanReason]
    """[M] Why each row in `order` stands there."""
    prefill_budget_tokens: int = UNLIMITED_TOKENS
    """Most prompt tokens prefilled in one step."""
    max_batch: int = 0
    """Most sequences decoded in one step; 0: the engine's limit."""
    evict: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """[E] Rows whose KV is dropped; none of them in `order`."""
    shed: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """[S] Rows given up for good: the caller ends them with SLO_UNATTAINABLE. None of them in `order`; only rows that
    ask for it (`BatchView.drops`) or that have had no work done. Those that must finish (`BatchView.finishes`) are
    served last instead: `planning.settle` sees to it."""
    valid_for_steps: int = UNTIL_EVENT
    """Steps for which planning again without an event gives the same plan; at least 1. Events: arrival, acceptance,
    end, cancel, credit given or used up, a new estimate, the end of a prefill, steps slower than STEP_SLACK times the
    model."""
