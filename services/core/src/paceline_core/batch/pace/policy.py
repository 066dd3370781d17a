"""Admit, then pace: choose the requests worth serving, then serve them in the order in which they cannot wait."""

from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from paceline_core.batch.frames import at_frame_end, steps_to_frame_end
from paceline_core.batch.pace import value
from paceline_core.batch.pace.demand import Demand, admit
from paceline_core.batch.pace.frame import frame_steps, in_order, running_head
from paceline_core.batch.pace.needs import Needs, needs_of, pace_of
from paceline_core.batch.pace.needs import Pace as Speed
from paceline_core.batch.pace.shape import choose_head, prefill_budget
from paceline_core.batch.pace.shortlist import due_ms, shortlist
from paceline_core.batch.pace.triage import lost, shed
from paceline_core.batch.pace.urgency import Place, laxity_ms, places
from paceline_core.batch.plan import STEP_SLACK, UNTIL_EVENT, BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.view import BatchView, FloatArray, IntArray

_UPPER_DEVIATIONS: Final = 1.645
"""Standard deviations between the mean and the upper level of a length, were it normal."""
_REASONS: Final = np.array(
    [
        PlanReason.LAXITY,
        PlanReason.URGENT,
        PlanReason.WANTED,
        PlanReason.SPARE,
        PlanReason.AHEAD,
        PlanReason.HOPELESS,
    ],
    dtype=object,
)
"""By `Place`."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The policy `pace`."""

    name: ClassVar[str] = "pace"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    request_tokens: float = 3_000.0
    """What meeting a request's target is worth beside its tokens, tokens."""
    task_tokens: float = 3_000.0
    """What meeting a task's target is worth beside its tokens, tokens."""
    z: float = 1.0
    """Standard deviations of demand for which room is kept."""
    task_share: float = 0.25
    """Share of the engine's time that may be promised to tasks. Theirs are the longest budgets: much that is worth more
    comes before they end, and what is known of their rest is the critical path, not the calls beside it."""
    least_chance: float = 0.05
    """P(meet) under which a request is demoted."""
    hold_steps: int = 8
    """Steps for which a run set is kept unless a deadline forces a change."""
    first_share: float = 0.5
    """Share of its budget within which a first token is urgent."""
    length_doubt: float = 0.5
    """Standard deviations of its length that a deadline's laxity allows for."""
    stay: float = 1.3
    """How many times denser than a running request one must be to take its slot."""
    fair_tokens: float = 0.0
    """Tokens ahead of its share at which a tenant's density is halved; 0: off."""
    usual_chunks: int = 1
    """Prefill chunks of a step while the batch is full."""
    most_chunks: int = 2
    """Prefill chunks of a step while it is not."""
    shortlist: int = 3
    """Rows looked at closely, in batches."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        runnable = view.runnable_rows()
        steps = frame_steps(view, self.hold_steps)
        left = steps_to_frame_end(view, steps)
        if not at_frame_end(view, steps) or len(runnable) <= view.capacity.max_batch:
            head = running_head(view, runnable)
            if head is not None:
                return self._written(view, runnable, head, due_ms(view), left)
        return self._chosen(view, runnable, now_ms, left)

    def _chosen(self, view: BatchView, runnable: IntArray, now_ms: float, steps: int) -> BatchPlan:
        """A new run set."""
        worth = value.Worth(self.request_tokens, self.task_tokens, self.fair_tokens)
        speed = pace_of(view, runnable, view.capacity.prefill_chunk_tokens)
        due = due_ms(view)
        rows = shortlist(view, runnable, due, speed, worth, now_ms, self.shortlist, self.stay)
        needs = needs_of(view, rows, speed, now_ms)
        possible = value.tokens_possible(needs, speed)
        p_meet = value.chance(view, needs, possible)
        in_time = value.tokens_in_time(needs, speed)
        density = value.density(view, needs, speed, worth, p_meet, in_time)
        density = np.where(needs.running, density * self.stay, density)
        hopeless = lost(view, needs, p_meet, in_time, self.least_chance)
        deviation = self._deviation(view, needs)
        admitted = admit(
            _demand(needs, speed, deviation, self.task_share), np.where(hopeless, 0.0, density), self.z
        )
        laxity = laxity_ms(needs, speed, deviation, self.length_doubt)
        first_ms = np.where(
            needs.stream & (view.generated[rows] == 0), self.first_share * view.ttft_ms[rows], 0.0
        )
        prefill = view.prefill_left(rows)
        backlog = float(prefill.sum())
        budget = min(backlog, self.usual_chunks * max(1, view.capacity.prefill_chunk_tokens))
        hold_ms = STEP_SLACK * (steps + 1) * (speed.step_ms + budget * speed.prefill_token_ms)
        place = places(needs, laxity, admitted, hopeless, first_ms, hold_ms)
        by_time = (place == Place.DUE.value) | (place == Place.AHEAD.value)
        score = np.where(by_time, laxity, -density)
        rejected = ~admitted & ~hopeless & (needs.stream | needs.bounded)
        gone = shed(view, needs, hopeless, bool(rejected.any()))
        order = np.lexsort((view.row_id[rows], view.arrival_ms[rows], score, place))
        order = order[~gone[order]]
        batch = view.capacity.max_batch
        chunk = max(1, view.capacity.prefill_chunk_tokens)
        head = choose_head(prefill, order, self.usual_chunks * chunk, batch)
        away = rows[gone]
        place_of = np.full(len(view), Place.SPARE.value)
        place_of[rows] = place
        score_of = np.zeros(len(view))
        score_of[rows] = score
        plan = self._written(view, runnable, rows[head], due, steps, away)
        return replace(
            plan,
            scores=score_of[plan.order],
            reasons=_REASONS[place_of[plan.order]].tolist(),
            shed=away,
            valid_for_steps=1 if gone.any() else plan.valid_for_steps,
        )

    def _written(
        self,
        view: BatchView,
        runnable: IntArray,
        head: IntArray,
        due: FloatArray,
        steps: int,
        gone: IntArray | None = None,
    ) -> BatchPlan:
        """The plan that lets `head` run for `steps` more steps."""
        order = in_order(view, head, runnable, due, gone)
        decoding = head[view.prefill_left(head) == 0]
        waiting = len(head) - len(decoding)
        if len(runnable) <= len(head):
            steps = UNTIL_EVENT
        return BatchPlan(
            order=order,
            scores=np.zeros(len(order)),
            reasons=[PlanReason.IN_FRAME] * len(head) + [PlanReason.SPARE] * (len(order) - len(head)),
            prefill_budget_tokens=prefill_budget(
                view, decoding, waiting, self.usual_chunks, self.most_chunks
            ),
            valid_for_steps=1 if waiting else steps,
        )

    @staticmethod
    def _deviation(view: BatchView, needs: Needs) -> FloatArray:
        """[M] Standard deviation of the tokens still to come, read from the upper level."""
        rows = needs.row
        upper = view.lengths.upper_left(view.row_id[rows], view.generated[rows])
        return np.asarray(np.maximum(upper - needs.tokens, 0.0) / _UPPER_DEVIATIONS)


@dataclass(frozen=True, slots=True)
class Oracle(Pace):
    """The policy `oracle`: `pace` with the true lengths."""

    name: ClassVar[str] = "oracle"
    estimates: ClassVar[EstimateUse] = EstimateUse.TRUE

    z: float = 0.0
    task_share: float = 1.0
    length_doubt: float = 0.0


def _demand(needs: Needs, speed: Speed, deviation: FloatArray, task_share: float) -> Demand:
    """The pieces of each request: of a stream its first token with the prompt, and the two halves of the others; of a
    task this call, and what the task needs after it, so much more than it is as `task_share` says."""
    count = len(needs.row)
    weight = np.where(needs.task, 1.0 / task_share, 1.0)
    slot = speed.slot_ms
    others = np.maximum(needs.tokens - 1.0, 0.0)
    first_ms = np.maximum(needs.next_ms, needs.prefill_ms + speed.step_ms)
    last_ms = first_ms + others * needs.tbt_ms
    half_ms = first_ms + others * needs.tbt_ms / 2
    none = np.zeros(count)
    last_call_ms = needs.end_ms - needs.rest_tokens * speed.step_ms
    timed = needs.stream | needs.bounded
    first = np.where(needs.stream, needs.prefill_ms + slot, np.where(needs.bounded, needs.cost_ms, 0.0))
    second = np.where(needs.stream, others * slot / 2, none)
    third = np.where(needs.stream, others * slot / 2, np.where(needs.task, needs.rest_tokens * slot, none))
    spread = np.where(timed, (weight * deviation * slot) ** 2, 0.0)
    return Demand(
        due_ms=np.concatenate(
            [
                np.where(needs.stream, first_ms, np.maximum(last_call_ms, needs.alone_ms)),
                np.where(needs.stream, half_ms, needs.end_ms),
                np.where(needs.stream, last_ms, needs.end_ms),
            ]
        ),
        cost_ms=np.concatenate([first * weight, second, third * weight]),
        variance=np.concatenate(
            [np.where(needs.stream, none, spread), none, np.where(needs.stream, spread, none)]
        ),
        owner=np.concatenate([np.arange(count)] * 3),
    )
