"""Laxity and the chance to be in time, request by request, at the step time of the batch as it is now.

No forward model: each request is taken to get one token per step from now on, and prompts to be prefilled next.
"""

import numpy as np

from paceline_core import lengths
from paceline_core.batch.plan import STEP_SLACK, UNTIL_EVENT
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, BoolArray, FloatArray, IntArray
from paceline_core.slo import SloClass


def step_now_ms(view: BatchView) -> float:
    """A decode step with the requests that run now (one, at least)."""
    decoding = view.state == RunState.RUNNING.value
    batch = max(1, min(int(np.count_nonzero(decoding)), view.capacity.max_batch))
    return max(view.model.decode_ms(batch, float(view.context_tokens(np.flatnonzero(decoding)).sum())), 1e-3)


def steps_within(view: BatchView, head: IntArray, prefill_tokens: int, time_ms: float) -> int:
    """Whole steps of the batch `head` (rows) within `time_ms`, each with up to `prefill_tokens` of prefill, even
    if they take STEP_SLACK times what the model says; at least 1. While nothing is known of step times: 1."""
    if not view.model.known or not len(head):
        return 1
    if not np.isfinite(time_ms):
        return UNTIL_EVENT
    prefill = min(float(view.prefill_left(head).sum()), float(prefill_tokens))
    context = float(view.context_tokens(head).sum())
    step_ms = STEP_SLACK * view.model.step_ms(len(head), context, prefill, view.capacity.max_context_tokens)
    return int(min(max(1.0, time_ms / max(step_ms, 1e-3)), UNTIL_EVENT))


def time_left_ms(view: BatchView, now_ms: float) -> FloatArray:
    """[N] Until the next token is due (latency) or the last one (deadline, task); infinite for best effort."""
    latency = view.slo_class == SloClass.LATENCY.value
    due = view.arrival_ms + np.where(latency, view.ttft_ms + view.generated * view.tbt_ms, view.e2e_ms)
    due = np.minimum(np.minimum(due, view.call_due_ms), view.task_due_ms)
    due = np.where(view.slo_class == SloClass.BEST_EFFORT.value, np.inf, due)
    return np.asarray(due - now_ms)


def out_of_reach(view: BatchView, rows: IntArray, now_ms: float) -> BoolArray:
    """[R] True for those of `rows` whose target is missed whatever comes: a token was late, or the next one is
    (latency), or the deadline is past: that of the task, for its calls, which counts from the first of them."""
    slo_class = view.slo_class[rows]
    latency = slo_class == SloClass.LATENCY.value
    token_due_ms = view.ttft_ms[rows] + view.generated[rows] * view.tbt_ms[rows]
    due = view.arrival_ms[rows] + np.where(latency, token_due_ms, view.e2e_ms[rows])
    due = np.minimum(due, view.task_due_ms[rows])
    missed = (due < now_ms) | (latency & (view.late_tokens[rows] > 0))
    return np.asarray(missed & (slo_class != SloClass.BEST_EFFORT.value))


def attainable_ms(view: BatchView, now_ms: float) -> FloatArray:
    """[N] The budget from its arrival that each request would meet if it ran in every step from now on, in a batch as
    full as it gets: until the next token (latency), the last one (by the mean of its estimate), or its task's end."""
    capacity = view.capacity
    batch = max(1, min(len(view), capacity.max_batch))
    context = float(view.context_tokens().mean()) if len(view) else 0.0
    step = view.model.decode_ms(batch, batch * context)
    tokens = np.where(view.slo_class == SloClass.LATENCY.value, 1.0, view.mean_left() + view.task_rest_tokens)
    return np.asarray(now_ms - view.arrival_ms + prefill_ms(view) + tokens * step)


def laxity_ms(view: BatchView, now_ms: float, remaining: FloatArray) -> FloatArray:
    """[N] Time left minus time needed, for `remaining` [N] output tokens (latency class: for the next one)."""
    step = step_now_ms(view)
    tokens = np.where(view.slo_class == SloClass.LATENCY.value, 1.0, remaining)
    return np.asarray(time_left_ms(view, now_ms) - prefill_ms(view) - tokens * step)


def p_meet(view: BatchView, now_ms: float) -> tuple[FloatArray, FloatArray]:
    """[N] P(meet) from the length distribution, and [N] laxity at one token: how far the next token is from late.

    Latency class: 1 while the next token can be in time, else 0. Best effort: 1.
    """
    step = step_now_ms(view)
    room = time_left_ms(view, now_ms) - prefill_ms(view)
    tokens = np.clip(np.floor(room / step), 0.0, lengths.OPEN_EDGE)
    generated = view.generated.astype(np.float64)
    cdf = view.length_cdf()
    out = lengths.cdf_at(cdf, generated)
    reach = np.where(generated + tokens >= view.max_tokens, 1.0, lengths.cdf_at(cdf, generated + tokens))
    chance = np.clip((reach - out) / np.maximum(1.0 - out, 1e-9), 0.0, 1.0)
    chance = np.where(room < step, 0.0, chance)
    latency = view.slo_class == SloClass.LATENCY.value
    chance = np.where(latency, (room >= step).astype(np.float64), chance)
    chance = np.where(view.slo_class == SloClass.BEST_EFFORT.value, 1.0, chance)
    return np.asarray(chance), np.asarray(room - step)


def prefill_ms(view: BatchView) -> FloatArray:
    """[N] Until the prompt is prefilled, alone and in chunks."""
    token_ms = view.model.prefill_token_ms(max(1, view.capacity.prefill_chunk_tokens))
    return np.asarray(view.prefill_left() * token_ms)
