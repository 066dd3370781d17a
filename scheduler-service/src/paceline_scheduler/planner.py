"""From the live table to the plan that the executor gets: isolation, the policy, what fits, what changed."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from paceline.executor.v1 import executor_pb2
from paceline_core.batch.plan import BatchPlan, PlanReason
from paceline_core.batch.planning import decide, settle
from paceline_core.batch.policy import BatchPolicy
from paceline_core.batch.view import BatchView, IntArray
from paceline_scheduler.state import SchedulerState

_HEADS_KEPT = 8
"""Plans remembered that no step was reported of yet; more are in flight only when the engine is stuck."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan and why, for whoever asks."""

    plan: executor_pb2.Plan = field(default_factory=executor_pb2.Plan)
    scores: tuple[float, ...] = ()
    reasons: tuple[PlanReason, ...] = ()
    cut: dict[int, PlanReason] = field(default_factory=dict)
    """Attempts that the policy listed and the plan does not, by key, and why (at most as many as the plan lists)."""
    plan_ms: float = 0.0


class Planner:
    """Plans when asked, and says whether the executor must hear of it."""

    def __init__(self, state: SchedulerState, policy: BatchPolicy, first_plan_id: int) -> None:
        self._state = state
        self._policy = policy
        self._plan_id = first_plan_id
        self._steps = 0
        self._planned_step = -1
        self.record = PlanRecord()
        """The newest plan."""
        self.isolating = False
        """True while the plan lists one isolated attempt alone."""
        self._heads: deque[tuple[int, frozenset[int]]] = deque(maxlen=_HEADS_KEPT)

    @property
    def policy_name(self) -> str:
        """The policy in force."""
        return self._policy.name

    def may_be_running(self, attempt_key: int) -> bool:
        """True if the engine may have begun a step with it that no report told of: it is in the head of the plan that
        the last reported step followed, or of a newer one."""
        return any(attempt_key in head for _, head in self._heads)

    def new_life(self) -> None:
        """Another engine process: it has not seen any plan."""
        self.forget()
        self._heads.clear()

    def forget(self) -> None:
        """The executor has no plan: the next one is sent whatever it says."""
        self.record = PlanRecord()

    def stepped(self, plan_id: int) -> None:
        """A step followed `plan_id`; after `valid_for_steps` of them it is time to plan again."""
        while self._heads and self._heads[0][0] < plan_id:
            self._heads.popleft()
        if plan_id != self.record.plan.plan_id:
            return
        self._steps += 1
        if 0 < self.record.plan.valid_for_steps <= self._steps:
            self._state.mark_dirty()

    def plan(self, shed: Callable[[BatchView, IntArray, float], None]) -> executor_pb2.Plan | None:
        """Plan now. None when the executor's plan says the same already. `shed(view, rows, now_ms)` is told what the
        plan gives up."""
        began = time.perf_counter()
        state = self._state
        table = state.table
        rows = table.live_rows()
        state.tenants.tell(rows)
        view = table.view(
            state.engine.capacity,
            state.fitter.model,
            rows,
            step=state.engine.steps,
            planned_step=self._planned_step,
        )
        self._planned_step = state.engine.steps
        now = state.now_ms()
        isolated = self._isolated(view)
        self.isolating = isolated is not None
        length = state.config.plan_length
        if isolated is None:
            decision = decide(self._policy, view, now, length)
        else:
            decision = settle(view, _alone(view, isolated), now, length)
        chosen, order = decision.chosen, decision.order
        plan = executor_pb2.Plan(
            attempt_keys=[table.at(row).key for row in rows[order].tolist()],
            token_limits=view.token_limit[order].tolist() if view.token_limit[order].any() else (),
            evict=[table.at(row).key for row in rows[decision.evict].tolist()],
            max_batch=decision.max_batch,
            prefill_budget_tokens=decision.prefill_budget_tokens,
            valid_for_steps=decision.valid_for_steps,
        )
        self._steps = 0
        old = self.record.plan
        plan.plan_id = old.plan_id
        changed = not old.plan_id or plan != old
        if changed:
            self._plan_id += 1
            plan.plan_id = self._plan_id
            head = plan.attempt_keys[: plan.max_batch or view.capacity.max_batch]
            self._heads.append((plan.plan_id, frozenset(head)))
        self.record = self._explained(chosen, view, order, plan, (time.perf_counter() - began) * 1000)
        shed(view, decision.shed, now)
        return plan if changed else None

    def _isolated(self, view: BatchView) -> int | None:
        """The attempt to run alone, a row of the view: a suspect after a crash, the oldest first. None: no suspects.

        One that waits for credit cannot crash the engine, so the others run meanwhile.
        """
        until = self._state.table.isolate_until[view.row_id]
        if not until.any():
            return None
        suspects = np.flatnonzero((until > view.generated) & view.runnable())
        if not len(suspects):
            return None
        return int(suspects[np.lexsort((view.row_id[suspects], view.arrival_ms[suspects]))[0]])

    def _explained(
        self, chosen: BatchPlan, view: BatchView, order: IntArray, plan: executor_pb2.Plan, plan_ms: float
    ) -> PlanRecord:
        listed = len(order)
        cut: dict[int, PlanReason] = {}
        table = self._state.table
        if len(chosen.order) == listed:  # nothing was cut out: the lists run side by side
            scores, reasons = chosen.scores, tuple(chosen.reasons)
        else:
            place = np.full(len(view), -1, dtype=np.int64)
            place[chosen.order] = np.arange(len(chosen.order))
            at = place[order]
            scores, reasons = chosen.scores[at], tuple(chosen.reasons[i] for i in at.tolist())
            left_out = chosen.order[~np.isin(chosen.order, order)][: self._state.config.plan_length]
            for row in view.row_id[left_out].tolist():
                cut[table.at(row).key] = PlanReason.NO_KV_ROOM
        return PlanRecord(plan, tuple(scores.tolist()), reasons, cut, plan_ms)


def _alone(view: BatchView, row: int) -> BatchPlan:
    return BatchPlan(
        order=np.asarray([row], dtype=np.int64),
        scores=np.zeros(1),
        reasons=[PlanReason.ISOLATED],
        prefill_budget_tokens=max(1, view.capacity.prefill_chunk_tokens) * 4,
    )
