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


def _no_rows() -> IntArray:
    return np.empty(0, dtype=np.int64)


def _nothing() -> BatchPlan:
    return BatchPlan(order=_no_rows(), scores=np.empty(0), reasons=())


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan and why, for whoever asks. What few ask for is worked out then."""

    plan: executor_pb2.Plan = field(default_factory=executor_pb2.Plan)
    chosen: BatchPlan = field(default_factory=_nothing)
    """What the policy said."""
    order: IntArray = field(default_factory=_no_rows)
    """[M] What came of it: the rows of the view behind `plan.attempt_keys`."""
    row_id: IntArray = field(default_factory=_no_rows)
    """[N] Rows of the table behind the view."""
    plan_ms: float = 0.0

    def scores(self) -> list[float]:
        """[M] The policy's score of each attempt of the plan."""
        scores: list[float] = self.chosen.scores[self._places()].tolist()
        return scores

    def reasons(self) -> list[PlanReason]:
        """[M] Why each attempt stands there."""
        return [self.chosen.reasons[place] for place in self._places().tolist()]

    def cut(self, row: int) -> bool:
        """True if the policy listed the row and it did not fit."""
        place = np.searchsorted(self.row_id, row)
        listed = place < len(self.row_id) and self.row_id[place] == row and place in self.chosen.order
        return bool(listed and place not in self.order)

    def _places(self) -> IntArray:
        """[M] Where the policy had each of them."""
        by_row = np.argsort(self.chosen.order)
        return by_row[np.searchsorted(self.chosen.order, self.order, sorter=by_row)]


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
        order = decision.order
        plan = executor_pb2.Plan(
            attempt_keys=table.keys_of(rows[order]),
            token_limits=view.token_limit[order].tolist() if view.token_limit[order].any() else (),
            evict=table.keys_of(rows[decision.evict]),
            max_batch=decision.max_batch,
            prefill_budget_tokens=decision.prefill_budget_tokens,
        )
        self._steps = 0
        old = self.record.plan
        # For how long a plan holds is no news to an engine that goes on with it until another one comes.
        plan.plan_id, plan.valid_for_steps = old.plan_id, old.valid_for_steps
        changed = not old.plan_id or plan != old
        plan.valid_for_steps = decision.valid_for_steps
        if changed:
            self._plan_id += 1
            plan.plan_id = self._plan_id
            head = plan.attempt_keys[: plan.max_batch or view.capacity.max_batch]
            self._heads.append((plan.plan_id, frozenset(head)))
        plan_ms = (time.perf_counter() - began) * 1000
        self.record = PlanRecord(plan, decision.chosen, order, rows, plan_ms)
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


def _alone(view: BatchView, row: int) -> BatchPlan:
    return BatchPlan(
        order=np.asarray([row], dtype=np.int64),
        scores=np.zeros(1),
        reasons=[PlanReason.ISOLATED],
        prefill_budget_tokens=max(1, view.capacity.prefill_chunk_tokens) * 4,
    )
