"""GMAX, the policy of JITServe (NSDI'26, arXiv 2504.20068), to the letter where the letter is known.

A request that takes `t_gen = len_rem * v` to finish and has `t_rem` left needs the share `bw = t_gen / t_rem` of the
engine, and brings `goodput / t_rem * Delta` in a frame. Value per share is its priority: `goodput / t_gen`, the tokens
that count if it makes it for each second of service it still takes. (A stream's share comes from its TBT, as if it had
`len_rem * TBT` left: the quotient is the same.) The deadline cancels out.

Taken where the paper says nothing: a task's call counts its own tokens; v is a step of a full batch (`full_step_ms`);
the client's priority doubles the goodput per level.
"""

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
    quantised,
    shortlist,
    steps_to_frame_end,
)
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import leading
from paceline_core.batch.sarathi import prefill_tokens
from paceline_core.batch.view import BatchView, FloatArray, IntArray
from paceline_core.slo import SloClass

_LEVELS = 20
"""Client priorities beyond this count as this."""


@dataclass(frozen=True, slots=True)
class Gmax:
    """The policy `gmax`: goodput per time of service, grouped by input length, frame by frame."""

    name: ClassVar[str] = "gmax"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    frame_steps: int = 50
    """Delta: steps of a frame."""
    estimate_every_tokens: int = 50
    """Output tokens between two looks at a request's remaining length."""
    group_share: float = 0.95
    """p: requests with this share of the B-th largest priority compete for the batch."""
    best_effort_delta: float = 1.0
    """Priority that best effort gains in each frame it waits, goodput tokens per second."""
    max_wait_ms: float = 60_000.0
    """Requests that have not begun after this time are dropped (best effort is not); 0: never. Ours: unpublished."""
    fairness: float = 0.0
    """f: share of the priority that a tenant's lag decides."""
    output_weight: float = 1.0
    """Goodput of an output token; a prompt token counts 1. The paper's harness weighs output 8."""
    token_budget: int = 0
    """Most tokens of one step, as in `sarathi`."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = view.runnable_rows()
        v_ms = full_step_ms(view)
        priority = self._priority(view, v_ms)
        waiting = Waiting(
            keys=(-priority, view.arrival_ms, view.row_id),
            choose=lambda some, slots: self._choose(view, priority, some, slots),
        )
        shed = rows[:0]
        frame_end = at_frame_end(view, self.frame_steps)
        if frame_end:
            shed = self._dropped(view, now_ms)
            rows = rows[~np.isin(rows, shed)] if len(shed) else rows
            aged = self._aged(view, priority, v_ms, now_ms)
            rows = shortlist(view, rows, aged, self.group_share)
            chosen = self._run_set(view, rows, aged, v_ms)
        else:
            rows = shortlist(view, rows, priority, self.group_share)
            chosen = fill(view, rows, in_slot(view), waiting)
        made = listed(view, rows, chosen, waiting, steps_to_frame_end(view, self.frame_steps))
        reasons = [PlanReason.GOODPUT] * len(made.order)
        if not frame_end:
            reasons[: made.kept] = [PlanReason.IN_FRAME] * made.kept
        return BatchPlan(
            order=made.order,
            scores=priority[made.order],
            reasons=reasons,
            prefill_budget_tokens=prefill_tokens(view, made.order, self.token_budget),
            shed=shed,
            valid_for_steps=made.valid_for_steps,
        )

    def _tokens_left(self, view: BatchView) -> FloatArray:
        """[N] len_rem: the upper bound as it was when asked for last, less what came since; at least 1."""
        asked = quantised(view, self.estimate_every_tokens)
        return np.maximum(view.lengths.upper_left(view.row_id, asked) - (view.generated - asked), 1.0)

    def _priority(self, view: BatchView, v_ms: float) -> FloatArray:
        """[N] Goodput tokens per second of service; best effort: 0, for it earns its turn by waiting."""
        left = self._tokens_left(view)
        goodput = view.prompt_tokens + self.output_weight * (view.generated + left)
        priority = goodput / left * (1000.0 / v_ms)
        if view.priority.any():
            priority *= np.exp2(np.clip(view.priority, -_LEVELS, _LEVELS))
        if self.fairness:
            # What would make up for the tenant's lag within a frame.
            fair = np.maximum(view.tenant_lag_tokens, 0.0) / (self.frame_steps * v_ms / 1000.0)
            priority = (1.0 - self.fairness) * priority + self.fairness * fair
        priority[view.slo_class == SloClass.BEST_EFFORT.value] = 0.0
        return priority

    def _aged(self, view: BatchView, priority: FloatArray, v_ms: float, now_ms: float) -> FloatArray:
        """[N] Priorities at the end of a frame: best effort has gained for each frame since it came."""
        waited = np.flatnonzero(view.slo_class == SloClass.BEST_EFFORT.value)
        frames = np.floor(np.maximum(now_ms - view.arrival_ms[waited], 0.0) / (self.frame_steps * v_ms))
        aged = priority.copy()
        aged[waited] = self.best_effort_delta * frames
        return aged

    def _dropped(self, view: BatchView, now_ms: float) -> IntArray:
        if not self.max_wait_ms:
            return np.empty(0, dtype=np.int64)
        idle = (view.generated == 0) & (view.kv_tokens == 0) & (view.slo_class != SloClass.BEST_EFFORT.value)
        return np.flatnonzero(idle & (now_ms - view.arrival_ms > self.max_wait_ms))

    def _choose(self, view: BatchView, priority: FloatArray, rows: IntArray, slots: int) -> IntArray:
        """Of all within `group_share` of the B-th largest priority P_B, in order of their input length, the window of B
        with the largest sum."""
        if slots <= 0 or len(rows) <= slots:
            return rows[: max(slots, 0)]
        mine = priority[rows]
        threshold = self.group_share * np.partition(mine, len(rows) - slots)[len(rows) - slots]
        near = rows[mine >= threshold]
        near = near[np.lexsort((view.row_id[near], view.prompt_tokens[near]))]
        sums = np.concatenate([[0.0], np.cumsum(priority[near])])
        start = int(np.argmax(sums[slots:] - sums[:-slots]))
        return np.asarray(near[start : start + slots])

    def _run_set(self, view: BatchView, rows: IntArray, priority: FloatArray, v_ms: float) -> IntArray:
        """The window of this frame, but for preemptions that cost more than they gain."""
        slots = view.capacity.max_batch
        wanted = self._choose(view, priority, rows, slots)
        has = in_slot(view)
        running = rows[has[rows]]
        if len(wanted) < slots or not len(running):
            return wanted
        is_wanted = np.zeros(len(view), dtype=bool)
        is_wanted[wanted] = True
        victims = running[~is_wanted[running]]
        new = wanted[~has[wanted]]
        stay = wanted[has[wanted]]
        # The dearest newcomers take the free slots; each other one the slot of the cheapest that is left.
        new = leading(new, (-priority, view.arrival_ms, view.row_id), len(new))
        victims = leading(victims, (priority, -view.arrival_ms, view.row_id), len(victims))
        victims = victims[
            max(0, len(stay) + len(victims) - slots) :
        ]  # an engine that runs more than its limit
        free = len(new) - len(victims)
        rivals = new[free:]
        gain = (priority[rivals] - priority[victims]) * self.frame_steps * v_ms / 1000.0
        swap = gain > self._swap_cost(view, rivals, victims, v_ms)
        return np.concatenate([stay, new[:free], rivals[swap], victims[~swap]])

    def _swap_cost(self, view: BatchView, rivals: IntArray, victims: IntArray, v_ms: float) -> FloatArray:
        """[V] Stall * token rate, tokens: what the whole batch does not write while the victim's KV is made again, if
        it has to go, and while the run set changes."""
        capacity = view.capacity
        kv = int(view.kv_tokens.sum()) + int(view.context_tokens(rivals).sum())
        residents = int(np.count_nonzero(view.kv_tokens)) + int(np.count_nonzero(view.kv_tokens[rivals] == 0))
        goes = (
            not capacity.keeps_kv_when_paused or kv > capacity.kv_tokens or residents > capacity.max_resident
        )
        token_ms = view.model.prefill_token_ms(max(1, capacity.prefill_chunk_tokens))
        stall_ms = capacity.run_set_change_cost_ms + goes * token_ms * view.kv_tokens[victims]
        return np.asarray(stall_ms * capacity.max_batch / v_ms)


@dataclass(frozen=True, slots=True)
class GmaxNoAnalyzer(Gmax):
    """`gmax` without the request analyzer: every request is taken to write what its class usually writes."""

    name: ClassVar[str] = "gmax-no-analyzer"
    estimates: ClassVar[EstimateUse] = EstimateUse.PRIOR


@dataclass(frozen=True, slots=True)
class GmaxNoGrouping(Gmax):
    """`gmax` without grouping by input length: the B largest priorities run."""

    name: ClassVar[str] = "gmax-no-grouping"

    def _choose(self, view: BatchView, priority: FloatArray, rows: IntArray, slots: int) -> IntArray:
        return leading(rows, (-priority, view.arrival_ms, view.row_id), max(slots, 0))


@dataclass(frozen=True, slots=True)
class GmaxNoRefine(Gmax):
    """`gmax` with one estimate at arrival: what is out is subtracted from it, and never teaches anything."""

    name: ClassVar[str] = "gmax-no-refine"

    def _tokens_left(self, view: BatchView) -> FloatArray:
        at_arrival = view.lengths.upper_left(view.row_id, np.zeros_like(view.generated))
        return np.maximum(at_arrival - view.generated, 1.0)
