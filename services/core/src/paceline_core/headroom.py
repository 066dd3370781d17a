"""Headroom of an engine: what is free until when, given what it already owes.

Owed is what live requests must get to stay in time, at the mean of their length estimates: of a stream the tokens
due by the horizon, of a deadline what can no longer be made after the horizon, all of it once the deadline is past.
Best effort is owed nothing. Prompts not prefilled yet are owed in full at every horizon.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core import lengths
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, FloatArray
from paceline_core.slo import SloClass

HORIZONS_MS: Final[FloatArray] = np.asarray(
    [100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 24_000, 48_000, 80_000, 120_000], dtype=np.float64
)
"""[H] The fixed grid, 0.1 to 120 s."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Curves over `HORIZONS_MS`, and what the next request would find."""

    free_decode_tokens: FloatArray
    """[H] Decode slots free until then, summed over the batch."""
    free_prefill_tokens: FloatArray
    """[H] Prompt tokens that could be prefilled until then."""
    free_kv_tokens: FloatArray
    """[H] KV tokens expected free at that time."""
    next_step_ms: float
    """Expected decode step with one more sequence."""
    start_delay_ms: float
    """Expected wait before a new prompt's first prefill chunk."""


def remaining_mean_tokens(view: BatchView) -> FloatArray:
    """[N] Expected output tokens still to come; at least 1 for a live request."""
    if not len(view):
        return np.empty(0)
    generated = view.generated.astype(np.float64)
    total = lengths.mean(view.length_cdf(), generated, view.max_tokens.astype(np.float64))
    return np.maximum(total - generated, 1.0)


def headroom(view: BatchView, now_ms: float, remaining: FloatArray) -> Headroom:
    """The curves for the requests of `view` with `remaining` [N] expected output tokens."""
    capacity, model = view.capacity, view.model
    horizon = HORIZONS_MS
    batch = max(1, capacity.max_batch)
    decoding = view.state == RunState.RUNNING.value
    running = int(np.count_nonzero(decoding))
    context = float(view.context_tokens()[decoding].sum())
    mean_context = context / running if running else 256.0
    full_step = max(model.decode_ms(batch, mean_context * batch), 1e-3)
    next_batch = min(running + 1, batch)
    next_step = model.decode_ms(next_batch, mean_context * next_batch)

    chunk = max(1, capacity.prefill_chunk_tokens)
    token_ms = max(model.prefill_token_ms(chunk), 1e-6)
    prefill_ms = float(view.prefill_left().sum()) * token_ms

    owed = _owed_tokens(view, now_ms, remaining, full_step)
    busy = np.minimum(prefill_ms, horizon)
    free_decode = np.maximum((horizon - busy) / full_step * batch - owed, 0.0)
    decode_ms = owed / batch * full_step
    free_prefill = np.maximum(horizon - prefill_ms - decode_ms, 0.0) / token_ms

    growth = np.minimum(horizon[None, :] / full_step, remaining[:, None])
    lives = growth < remaining[:, None]
    held = np.where(lives, view.context_tokens()[:, None] + growth, 0.0).sum(axis=0)
    free_kv = np.maximum(capacity.kv_tokens - held, 0.0)

    start_delay = prefill_ms + (model.decode_ms(running, context) / 2 if running else 0.0)
    if len(view) >= batch:  # every slot is spoken for: wait until as many have left as are ahead
        leave = np.sort(remaining)[: len(view) - batch + 1]
        start_delay += float(leave[-1] if len(view) < 2 * batch else leave.sum() / batch) * full_step
    return Headroom(free_decode, free_prefill, free_kv, next_step, start_delay)


def _owed_tokens(view: BatchView, now_ms: float, remaining: FloatArray, step_ms: float) -> FloatArray:
    """[H] Output tokens owed by each horizon."""
    if not len(view):
        return np.zeros(len(HORIZONS_MS))
    elapsed = (now_ms - view.arrival_ms)[:, None] + HORIZONS_MS[None, :]
    left = remaining[:, None]
    latency = (view.slo_class == SloClass.LATENCY.value)[:, None]
    tbt = np.where(view.tbt_ms > 0, view.tbt_ms, 1.0)[:, None]
    due = np.floor((elapsed - view.ttft_ms[:, None]) / tbt) + 1 - view.generated[:, None]
    budget = np.where(np.isfinite(view.call_due_ms), view.call_due_ms - view.arrival_ms, view.e2e_ms)[:, None]
    # A request gets at most one token per step, so what is left after the horizon bounds what may wait until then.
    must = left - np.maximum(budget - elapsed, 0.0) / step_ms
    owed = np.clip(np.where(latency, due, must), 0.0, left)
    owed[view.slo_class == SloClass.BEST_EFFORT.value] = 0.0
    return np.asarray(owed.sum(axis=0))
