"""What serving a request is worth per millisecond of engine time, and its chance to be in time.

Token goodput and request goodput are added up in tokens: a request that meets its target is worth its tokens and
`Worth.request_tokens` more, a task `Worth.task_tokens` more. A stream earns token by token; what it has earned is no
reason to go on with it, while a deadline or a task earns everything at its end.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.pace.needs import Needs, Pace
from paceline_core.batch.view import BatchView, FloatArray
from paceline_core.lengths import OPEN_EDGE

_MOST_TOKENS: Final = int(OPEN_EDGE)
_PRIORITY_FACTOR: Final = 4.0
_MOST_HALVINGS: Final = 6.0
_MOST_DOUBLINGS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Worth:
    """The exchange between tokens and requests."""

    request_tokens: float
    task_tokens: float
    fair_tokens: float
    """How far ahead of its share a tenant's density is halved; 0: tenants are not told apart."""

    def favour(self, priority: NDArray[np.int32], lag_tokens: FloatArray) -> FloatArray:
        """[M] Factor of the density: the client's priority, and the tenant's account. Who is ahead of its share counts
        for less, who is behind for more."""
        factor = np.power(_PRIORITY_FACTOR, priority)
        if self.fair_tokens > 0:
            factor = factor * np.exp2(
                np.clip(lag_tokens / self.fair_tokens, -_MOST_HALVINGS, _MOST_DOUBLINGS)
            )
        return np.asarray(factor)


def tokens_possible(needs: Needs, pace: Pace) -> FloatArray:
    """[M] Output tokens of this call that can be out when the target's time is over, in every step from now on; what
    the task needs afterwards is left room for."""
    room = needs.end_ms - needs.prefill_ms - needs.rest_tokens * pace.step_ms
    return np.asarray(np.clip(room / pace.step_ms, 0.0, _MOST_TOKENS))


def chance(view: BatchView, needs: Needs, possible: FloatArray) -> FloatArray:
    """[M] P(meet), from the length distribution, for deadlines and tasks; 1 for others."""
    p = np.ones(len(needs.row))
    p[needs.bounded] = 0.0
    open_ = np.flatnonzero(needs.bounded & (possible >= 1.0))
    rows = needs.row[open_]
    p[open_] = view.lengths.p_within(
        view.row_id[rows], view.generated[rows], possible[open_].astype(np.int64)
    )
    return p


def tokens_in_time(needs: Needs, pace: Pace) -> FloatArray:
    """[M] Expected tokens of a stream that can still be in time: one that is late catches up at the speed of the steps.
    All its tokens for others."""
    late_ms = np.maximum(needs.prefill_ms + pace.step_ms - needs.next_ms, 0.0)
    gain_ms = np.maximum(needs.tbt_ms - pace.step_ms, 1e-3)
    return np.asarray(np.where(needs.stream, np.maximum(needs.tokens - late_ms / gain_ms, 0.0), needs.tokens))


def density(
    view: BatchView, needs: Needs, pace: Pace, worth: Worth, p_meet: FloatArray, in_time: FloatArray
) -> FloatArray:
    """[M] Expected tokens' worth per millisecond of engine time; 0 for best effort."""
    rows = needs.row
    prompt = view.prompt_tokens[rows]
    generated = view.generated[rows]
    calls = _TaskCalls(view, needs)
    clean = (view.late_tokens[rows] == 0) & (in_time >= needs.tokens)
    of_stream = in_time + np.where(clean, worth.request_tokens + np.where(generated == 0, prompt, 0), 0.0)
    whole = prompt + generated + needs.tokens
    of_bounded = p_meet * np.where(
        needs.task,
        (calls.sum_of(whole) + needs.rest_tokens) / (1.0 - needs.done_share) + worth.task_tokens,
        whole + worth.request_tokens,
    )
    value = np.where(needs.stream, of_stream, np.where(needs.bounded, of_bounded, 0.0))
    cost = calls.sum_of(needs.cost_ms) + needs.rest_tokens * pace.slot_ms
    value *= worth.favour(view.priority[rows], view.tenant_lag_tokens[rows])
    return np.asarray(value / np.maximum(cost, pace.slot_ms))


class _TaskCalls:
    """The calls of one task that are live together: they are weighed as one."""

    def __init__(self, view: BatchView, needs: Needs) -> None:
        task = view.task[needs.row]
        self._of_task = needs.task & (task >= 0)
        self._place = np.where(self._of_task, task, 0)

    def sum_of(self, column: FloatArray) -> FloatArray:
        """[M] Sum over the task for calls of tasks; the column itself for others."""
        if not self._of_task.any():
            return column
        total = np.bincount(self._place, weights=np.where(self._of_task, column, 0.0))
        return np.asarray(np.where(self._of_task, total[self._place], column))
