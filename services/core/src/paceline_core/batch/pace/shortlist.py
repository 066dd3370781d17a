"""The rows worth a closer look, of any number: a dozen passes over the live table, everything else is for the few."""

import numpy as np

from paceline_core.batch.pace.needs import Pace
from paceline_core.batch.pace.value import Worth
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, FloatArray, IntArray
from paceline_core.slo import SloClass

_LEAST_ROOM = 128
_REACH_SHARE = 0.5
"""Share of its expected tokens that a deadline has to have time for to be looked at."""


def due_ms(view: BatchView) -> FloatArray:
    """[N] Instant of the next token (stream), of the last one (deadline), of the end of the whole task (task); infinite
    for best effort."""
    due = view.arrival_ms + view.ttft_ms + view.generated * view.tbt_ms + view.e2e_ms
    np.minimum(due, view.task_due_ms, out=due)
    due[view.slo_class == SloClass.BEST_EFFORT.value] = np.inf
    return due


def shortlist(
    view: BatchView,
    rows: IntArray,
    due: FloatArray,
    pace: Pace,
    worth: Worth,
    now_ms: float,
    batches: int,
    stay: float,
) -> IntArray:
    """Those of `rows` to look at, at most `batches` batches of them and one more of best effort: the densest of those
    that can be in time, by the mean of their length, and the oldest of those that ask for no time."""
    batch = view.capacity.max_batch
    room = max(_LEAST_ROOM, batches * batch)
    if len(rows) <= room:
        return rows
    tokens = view.mean_left()
    prefill_ms = view.prefill_left() * pace.prefill_token_ms
    stream = view.slo_class == SloClass.LATENCY.value
    per_token = np.where(stream, pace.step_ms - view.tbt_ms, (_REACH_SHARE * pace.step_ms))
    in_reach = due - now_ms - prefill_ms > tokens * per_token
    density = view.prompt_tokens * (~stream | (view.generated == 0)) + tokens + worth.request_tokens
    density /= prefill_ms + (tokens + view.task_rest_tokens) * pace.slot_ms
    density *= in_reach
    density[view.state == RunState.RUNNING.value] *= stay
    if view.priority.any() or (worth.fair_tokens > 0 and view.tenant_lag_tokens.any()):
        density *= worth.favour(view.priority, view.tenant_lag_tokens)
    patient = view.slo_class[rows] == SloClass.BEST_EFFORT.value
    timed, others = rows[~patient], rows[patient]
    if len(timed) > room:
        timed = timed[np.argpartition(-density[timed], room)[:room]]
    few = max(batch, room - len(timed))
    if len(others) > few:
        others = others[np.argpartition(view.arrival_ms[others], few)[:few]]
    return np.concatenate([timed, others])
