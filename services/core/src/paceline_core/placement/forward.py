"""A forward model of a few engines: when residents leave, how fast the newcomer gets on, and whom it makes late.

All sequences of a batch grow by one token a step and leave at the end of their expected length, so that the batch, and
with it the step, shrinks departure by departure. Arrays are [G, M]: G engines with up to M residents each.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core.placement.kv_peak import future_peak_tokens
from paceline_core.placement.residents import Ints, Residents
from paceline_core.placement.view import Bools, FleetView, Floats, RequestView

_TBT_SPREAD: Final = 0.1
_FAR: Final = 1e9


@dataclass(frozen=True, slots=True)
class Forward:
    """float64[G] each, for one request joining each of G engines."""

    start_ms: Floats
    """Until its prefill begins: for a slot, for memory, and behind the prompts that wait."""
    prefill_ms: Floats
    step_ms: Floats
    """The first step that it takes part in."""
    tokens: Floats
    """What it can write by the time it is due; large without a deadline."""
    last_ms: Floats
    """Its expected last token."""
    drop: Floats
    """Fall of the residents' P(meet), each times its value, summed."""


def look_ahead(
    request: RequestView,
    fleet: FleetView,
    engines: Ints,
    now_ms: float,
    refill: float,
    size_power: float = 0.0,
) -> Forward:
    """What happens on `engines` [G] if the request joins them. `refill` is the share of departures that newcomers are
    expected to make good: 0 lets the batch run empty, 1 keeps it as it is. `size_power` is that of `value_of`.

    Raises ValueError for a view without residents.
    """
    live = fleet.residents
    if live is None:
        raise ValueError("a forward model needs the residents")
    costs, slots = fleet.costs.of(engines), fleet.slots[engines]
    count = live.count[engines]
    width = max(int(count.max(initial=0)), 1)
    rows = live.by_engine[engines, :width]
    there = np.arange(width) < count[:, None]
    flat = rows[there]
    left, context = np.zeros(rows.shape), np.zeros(rows.shape)
    left[there] = live.lengths.mean_left(flat, live.generated[flat])
    context[there] = live.prompt_tokens[flat] + live.generated[flat]

    own_input = request.input_tokens
    own_left = request.remaining_tokens
    strangers = np.maximum(
        fleet.live_requests[engines] - count, 0.0
    )  # of other routers: only their number is known
    batch = np.minimum(count + strangers, slots)
    held = context.sum(axis=1) * np.minimum(slots / np.maximum(count + strangers, 1.0), 1.0)
    slowdown = fleet.slowdown[engines]
    before = costs.decode_ms(np.maximum(batch, 1.0), held) * slowdown
    step = costs.decode_ms(np.minimum(batch + 1.0, slots), held + own_input + own_left / 2) * slowdown

    order = np.sort(np.where(there, left, _FAR), axis=1)
    backlog = fleet.queued_prefill_tokens[engines] + fleet.pending_prefill_tokens[engines]
    start = costs.d_ms * backlog + _slot_wait(order, count, slots, strangers) * before
    start = start + _memory_wait(fleet, engines, context, left, order, own_input + own_left) * before
    missing = request.uncached_tokens(len(fleet))[engines]
    prefill = costs.prefill_ms(missing)

    budget = min(request.left_ms, _FAR) - start - prefill
    shrinking, shrunk_ms = _shrinking_batch(
        order, context, there, costs.b_ms, costs.c_ms, step, count, slots, budget, own_left
    )
    steady = np.maximum(budget, 0.0) / step
    tokens = (1.0 - refill) * shrinking + refill * steady
    writing = (1.0 - refill) * shrunk_ms + refill * own_left * step
    waits = there & (live.generated[rows] == 0)
    drop = _residents_drop(fleet, live, rows, there & ~waits, now_ms, before, step, prefill, size_power)
    return Forward(start, prefill, step, np.maximum(tokens, 0.0), start + prefill + writing, drop)


def value_of(tokens: float, size_power: float) -> float:
    """What a request of so many tokens is worth: thousands of tokens to a power."""
    return float((max(tokens, 1.0) / 1000.0) ** size_power) if size_power else 1.0


def _slot_wait(order: Floats, count: Ints, slots: Floats, strangers: Floats) -> Floats:
    """[G] Steps until a slot is free for one more, by the shortest that must leave first."""
    ahead = (count + strangers + 1.0 - slots).astype(np.int64)
    if not (ahead > 0).any():
        return np.zeros(len(count))
    width = order.shape[1]
    # Those beyond the first round of departures wait for whole rounds more, at the mean remaining length.
    first = np.clip(ahead, 1, np.maximum(count, 1)) - 1
    nth = order[np.arange(len(count)), np.minimum(first, width - 1)]
    known = np.where(order < _FAR, order, 0.0)
    total = known.sum(axis=1)
    wait = np.where(ahead <= slots, np.minimum(nth, total / slots), total / slots)
    return np.asarray(np.where(ahead > 0, np.where(count > 0, np.maximum(wait, 0.0), 0.0), 0.0))


def _memory_wait(
    fleet: FleetView, engines: Ints, context: Floats, left: Floats, order: Floats, own_tokens: float
) -> Floats:
    """[G] Steps until the KV memory holds one more; many where it never does."""
    capacity = np.where(fleet.kv_capacity_tokens[engines] > 0, fleet.kv_capacity_tokens[engines], _FAR)
    if not (
        (context + left).sum(axis=1) + own_tokens > capacity
    ).any():  # not even all of it at once is too much
        return np.zeros(len(engines))
    over = future_peak_tokens(context, left) + own_tokens - capacity
    if not (over > 0).any():
        return np.zeros(len(engines))
    # A departure frees what its sequence holds then: as many of them are waited for as make good what is over.
    count = np.maximum((left > 0).sum(axis=1), 1)
    freed = (context + left).sum(axis=1) / count
    leave = np.ceil(over / np.maximum(freed, 1.0)).astype(np.int64)
    nth = order[np.arange(len(engines)), np.clip(leave - 1, 0, order.shape[1] - 1)]
    wait = np.where(over > 0, np.minimum(nth, _FAR), 0.0)
    return np.asarray(np.where(own_tokens > capacity, _FAR, wait))


def _shrinking_batch(
    order: Floats,
    context: Floats,
    there: Bools,
    b_ms: Floats,
    c_ms: Floats,
    step_ms: Floats,
    count: Ints,
    slots: Floats,
    budget_ms: Floats,
    own_left: float,
) -> tuple[Floats, Floats]:
    """[G] Tokens within the budget and time of `own_left` tokens, while the batch shrinks with each departure."""
    engines, width = order.shape
    ends = np.minimum(order, _FAR)
    mean_context = np.where(there, context, 0.0).sum(axis=1) / np.maximum(count, 1)
    gone = np.arange(width + 1)
    # With a queue behind it the batch stays full until the queue is gone.
    waiting = np.maximum(count + 1 - slots, 0.0)
    fewer = np.maximum(np.minimum(gone, count[:, None]) - waiting[:, None], 0.0)
    steps_ms = step_ms[:, None] - fewer * (b_ms + c_ms * mean_context)[:, None]
    steps_ms = np.maximum(steps_ms, 0.2 * step_ms[:, None])
    spans = np.diff(np.concatenate([np.zeros((engines, 1)), ends], axis=1), axis=1)
    clock = np.cumsum(spans * steps_ms[:, :-1], axis=1)
    rows = np.arange(engines)

    k = (clock <= budget_ms[:, None]).sum(axis=1)
    done = np.where(k > 0, ends[rows, np.maximum(k - 1, 0)], 0.0)
    at = np.where(k > 0, clock[rows, np.maximum(k - 1, 0)], 0.0)
    tokens = done + np.maximum(budget_ms - at, 0.0) / steps_ms[rows, np.minimum(k, width)]

    k = (ends <= own_left).sum(axis=1)
    done = np.where(k > 0, ends[rows, np.maximum(k - 1, 0)], 0.0)
    at = np.where(k > 0, clock[rows, np.maximum(k - 1, 0)], 0.0)
    return tokens, at + (own_left - done) * steps_ms[rows, np.minimum(k, width)]


def _residents_drop(
    fleet: FleetView,
    live: Residents,
    rows: Ints,
    decoding: Bools,
    now_ms: float,
    before_ms: Floats,
    step_ms: Floats,
    prefill_ms: Floats,
    size_power: float,
) -> Floats:
    """[G] What those that decode there lose: a slower step for the rest of their time, and the newcomer's prefill."""
    engine, at = np.nonzero(decoding)
    if not len(engine):
        return np.zeros(len(rows))
    flat = rows[engine, at]
    due, tbt = live.due_ms[flat], live.tbt_ms[flat]
    lost = np.zeros(len(flat))
    timed = np.flatnonzero(np.isfinite(due))
    if len(timed):
        who, on = flat[timed], engine[timed]
        left_ms = due[timed] - now_ms
        unhurt = np.clip(left_ms / before_ms[on], 0.0, _FAR)
        hurt = np.clip((left_ms - prefill_ms[on]) / step_ms[on], 0.0, _FAR)
        both = live.lengths.p_within(
            np.concatenate([who, who]),
            np.concatenate([live.generated[who], live.generated[who]]),
            np.concatenate([unhurt, hurt]).astype(np.int64),
        )
        lost[timed] = both[: len(who)] - both[len(who) :]
    streams = np.flatnonzero(tbt > 0)
    if len(streams):
        on, limit = engine[streams], tbt[streams]
        lost[streams] = _holds(limit, before_ms[on]) - _holds(limit, step_ms[on])
    if size_power:
        size = (live.prompt_tokens[flat] + live.first_mean[flat]) / 1000.0
        lost = lost * size**size_power
    return np.asarray(np.bincount(engine, weights=np.maximum(lost, 0.0), minlength=len(rows)))


def _holds(tbt_ms: Floats, step_ms: Floats) -> Floats:
    x = (tbt_ms - step_ms) / (_TBT_SPREAD * tbt_ms)
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-x, -50.0, 50.0))))
