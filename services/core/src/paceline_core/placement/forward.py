"""A forward model of a few engines: when residents leave, how fast the newcomer gets on, and whom it makes late.

All sequences of a batch grow by one token a step and leave at the end of their expected length, so that the batch, and
with it the step, shrinks departure by departure. There are few engines with a few dozen residents each: what an engine
comes to is worked out in plain numbers, which cost less than arrays of that size; what residents lose, in one pass over
all of them.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core.placement.kv_peak import future_peak_tokens
from paceline_core.placement.residents import Ints, Residents
from paceline_core.placement.view import FleetView, Floats, RequestView

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
    where = engines.tolist()
    counts = live.count[engines].tolist()
    flat = np.concatenate([live.by_engine[g, :count] for g, count in zip(where, counts, strict=True)])
    out = live.generated[flat]
    left = live.lengths.mean_left(flat, out).tolist()
    context = (live.prompt_tokens[flat] + out).tolist()
    missing = request.input_tokens if request.cached_tokens is None else 0.0
    rows, begin = [], 0
    for g, count in zip(where, counts, strict=True):
        end = begin + count
        if request.cached_tokens is not None:
            missing = max(request.input_tokens - float(request.cached_tokens[g]), 1.0)
        rows.append(_one(request, fleet, g, left[begin:end], context[begin:end], missing, refill))
        begin = end
    start, prefill, before, step, tokens, last = np.array(rows).reshape(-1, 6).T
    drop = _residents_drop(live, flat, out, counts, now_ms, before, step, prefill, size_power)
    return Forward(start, prefill, step, tokens, last, drop)


def _one(
    request: RequestView,
    fleet: FleetView,
    engine: int,
    left: Sequence[float],
    context: Sequence[float],
    missing_tokens: float,
    refill: float,
) -> tuple[float, float, float, float, float, float]:
    """Start, prefill, step before and with it, tokens by its deadline, and last token, of the request on one engine
    whose residents have `left` tokens to write over `context`."""
    costs = fleet.costs
    b_ms, c_ms, d_ms = float(costs.b_ms[engine]), float(costs.c_ms[engine]), float(costs.d_ms[engine])
    a_ms, a1_ms, slowdown = (
        float(costs.a_ms[engine]),
        float(costs.a1_ms[engine]),
        float(fleet.slowdown[engine]),
    )
    slots = max(float(fleet.max_batch[engine]), 1.0)
    own_input, own_left = request.input_tokens, request.remaining_tokens
    count = len(left)
    everyone = max(
        float(fleet.live_requests[engine]), float(count)
    )  # of other routers only the number is known
    batch = min(everyone, slots)
    context_tokens = float(sum(context))
    held = context_tokens * min(slots / max(everyone, 1.0), 1.0)
    joined, joined_context = min(batch + 1.0, slots), held + own_input + own_left / 2
    before = (a1_ms if batch <= 1.0 and a1_ms > 0.0 else a_ms + b_ms * max(batch, 1.0)) + c_ms * held
    step = (a1_ms if joined <= 1.0 and a1_ms > 0.0 else a_ms + b_ms * joined) + c_ms * joined_context
    before, step = before * slowdown, step * slowdown

    ends = sorted(left)
    waits = _slot_wait(ends, everyone, slots)
    capacity = float(fleet.kv_capacity_tokens[engine]) or _FAR
    if context_tokens + sum(ends) + own_input + own_left > capacity:  # all of it at once would be too much
        waits += _memory_wait(left, context, ends, own_input + own_left, capacity)
    backlog = float(fleet.queued_prefill_tokens[engine]) + float(fleet.pending_prefill_tokens[engine])
    start = d_ms * backlog + waits * before
    per_token = d_ms + float(costs.e_ms[engine]) * missing_tokens / 2
    prefill = float(costs.p0_ms[engine]) + missing_tokens * per_token if missing_tokens > 0 else 0.0

    budget = min(request.left_ms, _FAR) - start - prefill
    clock, steps = _shrinking_batch(ends, step, b_ms + c_ms * context_tokens / max(count, 1), slots)
    k = bisect_right(clock, budget)
    done, at = (ends[k - 1], clock[k - 1]) if k else (0.0, 0.0)
    shrinking = done + max(budget - at, 0.0) / steps[k]
    k = bisect_right(ends, own_left)
    done, at = (ends[k - 1], clock[k - 1]) if k else (0.0, 0.0)
    shrunk_ms = at + (own_left - done) * steps[k]
    tokens = (1.0 - refill) * shrinking + refill * max(budget, 0.0) / step
    writing = (1.0 - refill) * shrunk_ms + refill * own_left * step
    return start, prefill, before, step, max(tokens, 0.0), start + prefill + writing


def value_of(tokens: float, size_power: float) -> float:
    """What a request of so many tokens is worth: thousands of tokens to a power."""
    return float((max(tokens, 1.0) / 1000.0) ** size_power) if size_power else 1.0


def _slot_wait(ends: Sequence[float], everyone: float, slots: float) -> float:
    """Steps until a slot is free for one more, by the shortest that must leave first."""
    ahead = int(everyone + 1.0 - slots)
    if ahead <= 0 or not ends:
        return 0.0
    # Those beyond the first round of departures wait for whole rounds more, at the mean remaining length.
    rounds = sum(ends) / slots
    return min(ends[min(ahead, len(ends)) - 1], rounds) if ahead <= slots else rounds


def _memory_wait(
    left: Sequence[float], context: Sequence[float], ends: Sequence[float], own_tokens: float, capacity: float
) -> float:
    """Steps until the KV memory holds one more; many where it never does."""
    if own_tokens > capacity:
        return _FAR
    peak = float(future_peak_tokens(np.array([context], dtype=np.float64), np.array([left]))[0])
    over = peak + own_tokens - capacity
    if over <= 0:
        return 0.0
    # A departure frees what its sequence holds then: as many of them are waited for as make good what is over.
    freed = (sum(context) + sum(left)) / len(left)
    leave = math.ceil(over / max(freed, 1.0))
    return ends[min(leave, len(ends)) - 1]


def _shrinking_batch(
    ends: Sequence[float], step_ms: float, departure_ms: float, slots: float
) -> tuple[list[float], list[float]]:
    """When each departure comes, and the steps before each of them and after the last one."""
    # With a queue behind it the batch stays full until the queue is gone.
    gone = min(slots - len(ends) - 1.0, 0.0)
    least, clock, steps = 0.2 * step_ms, [], []
    now = last = 0.0
    for end in ends:
        step = step_ms - gone * departure_ms if gone > 0 else step_ms
        if step < least:
            step = least
        now += (end - last) * step
        last = end
        clock.append(now)
        steps.append(step)
        gone += 1.0
    steps.append(max(step_ms - max(gone, 0.0) * departure_ms, least))
    return clock, steps


def _residents_drop(
    live: Residents,
    flat: Ints,
    out: Ints,
    counts: Sequence[int],
    now_ms: float,
    before_ms: Floats,
    step_ms: Floats,
    prefill_ms: Floats,
    size_power: float,
) -> Floats:
    """[G] What those that decode there lose: a slower step for the rest of their time, and the newcomer's prefill.
    `flat` [R] are the residents of the engines, one after the other, with `out` [R] tokens written."""
    engine = np.repeat(np.arange(len(counts)), counts)
    due, tbt = live.due_ms[flat], live.tbt_ms[flat]
    lost = np.zeros(len(flat))
    timed = np.flatnonzero((due < np.inf) & (out > 0))
    if len(timed):
        who, on, written = flat[timed], engine[timed], out[timed]
        left_ms = due[timed] - now_ms
        reach = np.concatenate([left_ms / before_ms[on], (left_ms - prefill_ms[on]) / step_ms[on]])
        both = live.lengths.p_within(
            np.concatenate([who, who]),
            np.concatenate([written, written]),
            np.minimum(np.maximum(reach, 0.0), _FAR).astype(np.int64),
        )
        lost[timed] = both[: len(who)] - both[len(who) :]
    streams = np.flatnonzero((tbt > 0) & (out > 0))
    if len(streams):
        on, limit = engine[streams], tbt[streams]
        lost[streams] = _holds(limit, before_ms[on]) - _holds(limit, step_ms[on])
    if size_power:
        lost *= ((live.prompt_tokens[flat] + live.first_mean[flat]) / 1000.0) ** size_power
    sums = np.bincount(engine, weights=np.maximum(lost, 0.0), minlength=len(counts))
    return np.asarray(sums, dtype=np.float64)  # without residents they are whole numbers


def _holds(tbt_ms: Floats, step_ms: Floats) -> Floats:
    x = (tbt_ms - step_ms) / (_TBT_SPREAD * tbt_ms)
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-x, -50.0, 50.0))))
