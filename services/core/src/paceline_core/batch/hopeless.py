"""Whose target is out of reach, and what becomes of them: the same rules for every policy that sheds.

Lost is a request that would be late even if it had the engine for itself from now on: its next token (latency class),
or, but for a small chance, its last one, and with it half of what its task is expected to need afterwards. Who asked to
be dropped then is shed; everybody else is served from spare capacity, behind all who can still make it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core.batch.laxity import prefill_ms, steps_within
from paceline_core.batch.ranking import first_by, list_length
from paceline_core.batch.view import BatchView, BoolArray, FloatArray, IntArray
from paceline_core.slo import SloClass

LEAST_CHANCE: Final = 0.01
"""P(meet) under which a request is lost."""
REST_SHARE: Final = 0.5
"""Share of a task's expected rest that is held against its call: the rest is a mean, and dropping is for good."""
_FIRST_MARK: Final = 32


@dataclass(frozen=True, slots=True)
class Triage:
    """Who is lost at this time, and for how long that stays so."""

    lost: BoolArray
    """[N] The target is out of reach."""
    shed: IntArray
    """[S] Rows to give up for good: lost, and they asked for it."""
    holds_ms: float
    """Until the next one may be lost."""

    def split(self, view: BatchView, key: FloatArray) -> tuple[IntArray, int]:
        """[M] Runnable rows that are not shed, as many as a list takes, and how many of them, the first ones, are not
        lost. Both parts go by client priority, then `key` [N] (smallest first), then arrival."""
        stays = view.runnable()
        stays[self.shed] = False
        hopeful, lost = np.flatnonzero(stays & ~self.lost), np.flatnonzero(stays & self.lost)
        room = list_length(view)
        head = first_by(view, hopeful, key, room)
        tail = first_by(view, lost, key, room - len(head))
        return np.concatenate([head, tail]), len(head)

    def steps(self, view: BatchView, head: IntArray, prefill_tokens: int) -> int:
        """For how many steps with `head` (rows of the batch) and `prefill_tokens` per step the triage holds."""
        steps = steps_within(view, head, prefill_tokens, self.holds_ms)
        generated = view.generated[head]
        next_mark = np.maximum(2 * _marks(generated), _FIRST_MARK) - generated
        return max(1, min(steps, int(next_mark[view.e2e_ms[head] > 0].min(initial=steps))))


def triage(view: BatchView, now_ms: float, least_chance: float = LEAST_CHANCE) -> Triage:
    """Sort out who is lost at `now_ms`, at P(meet) under `least_chance`.

    The length distribution is conditioned on what is out at 32, 64, 128, ... tokens: between those marks a request that
    runs needs one token less with each, so that the answer holds for some steps.
    """
    # Alone in the engine, at no context: whoever is lost so is lost.
    step_ms = max(view.model.decode_ms(1, 0.0), 1e-3)
    room = _due_ms(view) - now_ms - prefill_ms(view)
    rest = REST_SHARE * view.task_rest_tokens
    slack = room - (1.0 + rest) * step_ms
    lost = (slack < 0) | (view.late_tokens > 0)

    open_ = np.flatnonzero(~lost & (view.e2e_ms > 0))
    ids, generated = view.row_id[open_], view.generated[open_]
    mark = _marks(generated)
    needed = np.maximum(view.lengths.mean_left(ids, mark) + mark - generated, 1.0)
    open_slack = room[open_] - (needed + rest[open_]) * step_ms
    # The chance is asked for only where the mean does not fit: of thousands that wait most are far from lost.
    close = np.flatnonzero(open_slack < 0)
    if len(close):
        least = view.lengths.quantile_left(ids[close], mark[close], least_chance) + mark[close]
        least = np.maximum(least - generated[close], 1.0)
        open_slack[close] = room[open_[close]] - (least + rest[open_[close]]) * step_ms
    slack[open_] = open_slack
    lost[open_] = open_slack < 0
    return Triage(
        lost=lost,
        shed=np.flatnonzero(lost & view.drops),
        holds_ms=float(slack[~lost].min(initial=np.inf)),
    )


def _due_ms(view: BatchView) -> FloatArray:
    """[N] Next token (latency), last token (deadline), whole task (task); infinite for best effort. The budget of one
    call of a task may be overdrawn: later calls can make up for it."""
    # Budgets of other classes are 0.
    due = view.arrival_ms + view.ttft_ms + view.generated * view.tbt_ms + view.e2e_ms
    due = np.minimum(due, view.task_due_ms)
    due[view.slo_class == SloClass.BEST_EFFORT.value] = np.inf
    return np.asarray(due)


def _marks(generated: IntArray) -> IntArray:
    """[N] The last of 0, 32, 64, 128, ... tokens that is passed."""
    marks = np.zeros_like(generated)
    past = np.flatnonzero(generated >= _FIRST_MARK)
    marks[past] = np.left_shift(1, np.log2(generated[past]).astype(np.int64))
    return marks
