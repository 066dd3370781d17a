"""Admit, then pace: choose the requests worth serving, then serve them in the order in which they cannot wait."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from paceline_core.batch.pace import value
from paceline_core.batch.pace.demand import Demand, admit
from paceline_core.batch.pace.needs import Needs, needs_of, pace_of
from paceline_core.batch.pace.needs import Pace as Speed
from paceline_core.batch.pace.shape import prefill_budget, prompts_apart
from paceline_core.batch.pace.triage import lost, shed
from paceline_core.batch.pace.urgency import Margins, Place, laxity_ms, places
from paceline_core.batch.plan import UNTIL_EVENT, BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.view import BatchView, FloatArray, IntArray

_LEAST_LIST: Final = 128
"""Rows that are looked at closely at least: where fewer are live, the list is of all of them."""
_UPPER_DEVIATIONS: Final = 1.645
"""Standard deviations between the mean and the upper level of a length, were it normal."""
_REASONS: Final = (
    PlanReason.URGENT,
    PlanReason.WANTED,
    PlanReason.SPARE,
    PlanReason.AHEAD,
    PlanReason.HOPELESS,
)
"""By `Place`."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The policy `pace`."""

    name: ClassVar[str] = "pace"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    request_tokens: float = 300.0
    """What meeting a request's target is worth beside its tokens, tokens."""
    task_tokens: float = 2_000.0
    """What meeting a task's target is worth beside its tokens, tokens."""
    z: float = 1.0
    """Standard deviations of demand for which room is kept."""
    share: float = 1.0
    """Share of the engine's time that may be promised."""
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
    usual_chunks: int = 4
    """Prefill chunks of a step while the batch is full."""
    most_chunks: int = 16
    """Prefill chunks of a step while it is not."""
    shortlist: int = 3
    """Rows looked at closely, in batches."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        runnable = np.flatnonzero(view.runnable())
        if not len(runnable):
            return BatchPlan(runnable, np.empty(0), [], max(1, view.capacity.prefill_chunk_tokens))
        everybody = len(runnable) <= view.capacity.max_batch
        if everybody and not view.drops[runnable].any() and not view.prefill_left()[runnable].any():
            return self._all_of(view, runnable)
        worth = value.Worth(self.request_tokens, self.task_tokens, self.fair_tokens)
        chunk = view.capacity.prefill_chunk_tokens
        speed = pace_of(view, runnable, chunk)
        needs = needs_of(view, runnable, speed, now_ms)
        calls = value.TaskCalls(view, needs)
        possible = value.tokens_possible(needs, speed)
        rough = value.rough_chance(needs, possible)
        near = self._shortlist(view, needs, value.density(view, needs, speed, worth, rough, calls))
        if len(near) < len(runnable):
            needs, possible, calls = needs.take(near), possible[near], calls.take(near)
        return self._ordered(view, needs, speed, worth, possible, calls, now_ms)

    def _ordered(
        self,
        view: BatchView,
        needs: Needs,
        speed: Speed,
        worth: value.Worth,
        possible: FloatArray,
        calls: value.TaskCalls,
        now_ms: float,
    ) -> BatchPlan:
        rows = needs.row
        p_meet = value.chance(view, needs, possible)
        density = value.density(view, needs, speed, worth, p_meet, calls)
        density = np.where(needs.running, density * self.stay, density)
        in_time = value.tokens_in_time(needs, speed)
        hopeless = lost(view, needs, p_meet, in_time, self.least_chance)
        deviation = self._deviation(view, needs)
        demand = _demand(needs, speed, deviation)
        admitted = admit(demand, np.where(hopeless, 0.0, density), self.z, self.share)
        rejected = ~admitted & ~hopeless & (needs.stream | needs.bounded)
        laxity = laxity_ms(needs, speed, deviation, self.length_doubt)
        margins = Margins(self.hold_steps * speed.step_ms, self.first_share, self.length_doubt)
        first_budget = np.where(needs.stream & (view.generated[rows] == 0), view.ttft_ms[rows], 0.0)
        place = places(needs, speed, laxity, admitted, hopeless, first_budget, margins)
        waits_by_time = (place == Place.URGENT) | (place == Place.AHEAD)
        score = np.where(waits_by_time, laxity, -density)
        gone = shed(view, needs, hopeless, bool(rejected.any()))
        order = np.lexsort((view.row_id[rows], view.arrival_ms[rows], score, place))
        order = order[~gone[order]]
        decode_ms = speed.step_ms
        batch = view.capacity.max_batch
        budget = prefill_budget(view, needs, order[:batch], self.usual_chunks, self.most_chunks, decode_ms)
        order = order[prompts_apart(view.prefill_left()[rows[order]], budget, batch)]
        reasons = [_REASONS[i] for i in place[order].tolist()]
        return BatchPlan(
            order=rows[order],
            scores=score[order],
            reasons=reasons,
            prefill_budget_tokens=budget,
            shed=rows[gone],
            valid_for_steps=1,
        )

    def _shortlist(self, view: BatchView, needs: Needs, density: FloatArray) -> IntArray:
        """Indexes of the rows worth a closer look: the densest, and the oldest of those that ask for no time."""
        room = max(_LEAST_LIST, self.shortlist * view.capacity.max_batch)
        count = len(density)
        if count <= room:
            return np.arange(count)
        timed = np.flatnonzero(needs.stream | needs.bounded)
        other = np.flatnonzero(~(needs.stream | needs.bounded))
        few = min(len(other), max(view.capacity.max_batch, room - len(timed)))
        room = min(len(timed), room - few if len(timed) > room - few else room)
        if room < len(timed):
            held = np.where(needs.running[timed], density[timed] * self.stay, density[timed])
            timed = timed[np.argpartition(-held, room)[:room]]
        if few < len(other):
            other = other[np.argpartition(view.arrival_ms[needs.row[other]], few)[:few]]
        return np.concatenate([timed, other])

    @staticmethod
    def _deviation(view: BatchView, needs: Needs) -> FloatArray:
        """[M] Standard deviation of the tokens still to come, read from the upper level."""
        rows = needs.row
        upper = view.lengths.upper_left(view.row_id[rows], view.generated[rows])
        return np.asarray(np.maximum(upper - needs.tokens, 0.0) / _UPPER_DEVIATIONS)

    def _all_of(self, view: BatchView, rows: IntArray) -> BatchPlan:
        """Everybody has a slot and nobody a prompt: only an event can change that."""
        rows = rows[np.argsort(view.row_id[rows])]
        return BatchPlan(
            order=rows,
            scores=np.zeros(len(rows)),
            reasons=[PlanReason.WANTED] * len(rows),
            prefill_budget_tokens=self.most_chunks * max(1, view.capacity.prefill_chunk_tokens),
            valid_for_steps=UNTIL_EVENT,
        )


@dataclass(frozen=True, slots=True)
class Oracle(Pace):
    """The policy `oracle`: `pace` with the true lengths."""

    name: ClassVar[str] = "oracle"
    estimates: ClassVar[EstimateUse] = EstimateUse.TRUE

    z: float = 0.0
    length_doubt: float = 0.0


def _demand(needs: Needs, speed: Speed, deviation: FloatArray) -> Demand:
    """The pieces of each request: of a stream its first token with the prompt, and the two halves of the others; of a
    task this call, and what the task needs after it."""
    count = len(needs.row)
    slot = speed.slot_ms
    others = np.maximum(needs.tokens - 1.0, 0.0)
    last_ms = needs.next_ms + others * needs.tbt_ms
    half_ms = needs.next_ms + others * needs.tbt_ms / 2
    none = np.zeros(count)
    timed = needs.stream | needs.bounded
    first = np.where(needs.stream, needs.prefill_ms + slot, np.where(needs.bounded, needs.cost_ms, 0.0))
    second = np.where(needs.stream, others * slot / 2, none)
    third = np.where(needs.stream, others * slot / 2, np.where(needs.task, needs.rest_tokens * slot, none))
    spread = np.where(timed, (deviation * slot) ** 2, 0.0)
    return Demand(
        due_ms=np.concatenate(
            [
                np.where(needs.stream, needs.next_ms, needs.due_ms),
                np.where(needs.stream, half_ms, needs.end_ms),
                np.where(needs.stream, last_ms, needs.end_ms),
            ]
        ),
        cost_ms=np.concatenate([first, second, third]),
        variance=np.concatenate(
            [np.where(needs.stream, none, spread), none, np.where(needs.stream, spread, none)]
        ),
        owner=np.concatenate([np.arange(count)] * 3),
    )
