"""GMAX as JITServe's released code has it, which is not what its paper says: the published runs used this one."""

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
from paceline_core.batch.laxity import prefill_ms, steps_within
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import leading
from paceline_core.batch.sarathi import prefill_tokens
from paceline_core.batch.view import BatchView, FloatArray, IntArray
from paceline_core.slo import SloClass


@dataclass(frozen=True, slots=True)
class GmaxArtifact:
    """Density = reward / remaining time, with reward = `(in + 8*len) * min(1, D / (waited + remaining))^100`.

    The length is one upper bound, of the arrival. Scores are those of the last whole frame on the clock, so that they
    stand still for a while, as they do between two scorings of the artifact.
    """

    name: ClassVar[str] = "gmax-artifact"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    frame_steps: int = 50
    """Steps between two scorings."""
    swaps: int = 3
    """Most running requests that give way at a scoring."""
    output_weight: float = 8.0
    """Reward of an output token; a prompt token counts 1."""
    steepness: float = 100.0
    """Exponent of the share of the budget that is expected to be kept: lateness costs (nearly) everything."""
    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = view.runnable_rows()
        v_ms = full_step_ms(view)
        frame_ms = self.frame_steps * v_ms
        scored_ms = np.floor(now_ms / frame_ms) * frame_ms
        density = self._density(view, v_ms, scored_ms)
        keys = (-density, view.arrival_ms, view.row_id)
        waiting = Waiting(keys, lambda some, slots: leading(some, keys, slots))
        rows = shortlist(view, rows, density)
        chosen = fill(view, rows, in_slot(view), waiting)
        if at_frame_end(view, self.frame_steps):
            chosen = self._swapped(view, rows, chosen, density)
        made = listed(view, rows, chosen, waiting, steps_to_frame_end(view, self.frame_steps))
        prefill = prefill_tokens(view, made.order, self.token_budget)
        scored_for = steps_within(
            view, made.order[: view.capacity.max_batch], prefill, scored_ms + frame_ms - now_ms
        )
        return BatchPlan(
            order=made.order,
            scores=density[made.order],
            reasons=[PlanReason.GOODPUT] * len(made.order),
            prefill_budget_tokens=prefill,
            valid_for_steps=min(made.valid_for_steps, scored_for),
        )

    def _density(self, view: BatchView, v_ms: float, at_ms: float) -> FloatArray:
        """[N] Reward per second of remaining time; of who has no deadline, as if it were kept."""
        total = view.lengths.upper_left(view.row_id, np.zeros_like(view.generated))
        left = np.maximum(total - view.generated, 1.0)
        remaining_ms = prefill_ms(view) + left * v_ms
        budget = view.ttft_ms + total * view.tbt_ms + view.e2e_ms  # those of other classes are 0
        budget = np.minimum(budget, view.call_due_ms - view.arrival_ms)
        budget[view.slo_class == SloClass.BEST_EFFORT.value] = np.inf
        waited = np.maximum(at_ms - view.arrival_ms, 0.0)
        density = (view.prompt_tokens + self.output_weight * total) * 1000.0 / remaining_ms
        kept = np.maximum(budget / (waited + remaining_ms), 1e-3)
        late = np.flatnonzero(kept < 1.0)
        density[late] *= kept[late] ** self.steepness
        return np.asarray(density)

    def _swapped(self, view: BatchView, rows: IntArray, chosen: IntArray, density: FloatArray) -> IntArray:
        """`chosen` after the densest of the others took the places of the least dense, as far as that gains."""
        out = np.zeros(len(view), dtype=bool)
        out[rows] = True
        out[chosen] = False
        others = np.flatnonzero(out)
        swaps = min(self.swaps, len(others), len(chosen))
        best = leading(others, (-density, view.arrival_ms, view.row_id), swaps)
        least = leading(chosen, (density, -view.arrival_ms, view.row_id), swaps)
        better = density[best] > density[least]
        return np.concatenate([chosen[~np.isin(chosen, least[better])], best[better]])
