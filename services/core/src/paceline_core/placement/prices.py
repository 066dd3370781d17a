"""Shadow prices: what a millisecond of each engine is worth, given what is asked for.

The linear program: classes j come at rate r_j, a share x_jg of them goes to engine g, where one takes w_jg of its
milliseconds and is in time with probability P_jg:

    maximise  sum r_j x_jg P_jg v_j   such that   sum_j r_j x_jg w_jg <= 1 for every g,   sum_g x_jg <= 1 for every j

Its duals are found by price iteration: at given prices every class goes where P*v - price*w is best (softly, so that
equal engines share), prices rise where more than a whole engine is asked for and fall where less is. With the soft
choice the dual is smooth and convex, and each price takes damped Newton steps of its own.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from paceline_core.placement.demand import Demand
from paceline_core.placement.view import FleetView, Floats

ROUNDS: Final = 10
TARGET: Final = 0.7
"""Share of an engine's time that may be asked for before its price rises."""
_SOFT: Final = 0.05
"""Net value within which classes do not mind."""
_DAMPING: Final = 0.5
_SPREAD: Final = 0.25
"""Error of predicted times, as a share; beside the spread of the lengths."""


@dataclass(frozen=True, slots=True)
class Prices:
    """float64[E] each."""

    per_ms: Floats
    """Value of a millisecond of the engine's time."""
    token_ms: Floats
    """Engine time of one output token in a full batch, at the contexts that are asked for."""

    @property
    def any(self) -> bool:
        """True if time is scarce anywhere."""
        return bool(self.per_ms.any())


def reprice(prices: Prices | None, fleet: FleetView, demand: Demand, rounds: int = ROUNDS) -> Prices:
    """New prices from the last ones (None: from nothing). Pure; to be kept by the caller and renewed about once a
    second: the iteration goes on where it ended."""
    count, usable = len(fleet), fleet.usable
    if not len(demand) or not usable.any():
        return Prices(np.zeros(count), full_token_ms(fleet, 0.0)[0])
    price = np.zeros(count) if prices is None or len(prices.per_ms) != count else prices.per_ms.copy()
    token_ms, work, chance = work_and_chance(fleet, demand)
    worth = chance * demand.value[:, None]
    worth[:, ~usable] = -np.inf
    # What a millisecond can be worth at most.
    most = np.where(usable, np.max(np.where(usable, worth, 0.0) / work, axis=0), 0.0)
    rate = demand.rate_per_ms[:, None]
    for _ in range(rounds):
        net = worth - price * work
        best = np.maximum(net.max(axis=1, keepdims=True), 0.0)
        share = np.exp(np.maximum((net - best) / _SOFT, -50.0))
        # Not to be served at all is a choice too, worth nothing.
        share /= share.sum(axis=1, keepdims=True) + np.exp(-best / _SOFT)
        asked = share * rate * work
        bend = (asked * work * (1.0 - share)).sum(axis=0) / _SOFT
        excess = asked.sum(axis=0) - TARGET
        # A step is bounded: far from the solution the bend says little.
        step = np.clip(_DAMPING * excess / np.maximum(bend, 1e-12), -0.1 * most, 0.1 * most)
        price = np.clip(price + step, 0.0, 2.0 * most)  # over it nobody comes, however soft the choice
    return Prices(np.asarray(price), token_ms)


def frozen(fleet: FleetView) -> FleetView:
    """A copy of what `reprice` reads of a view: its caller may let the fleet change meanwhile."""
    return replace(
        fleet,
        up=fleet.up.copy(),
        draining=fleet.draining.copy(),
        max_batch=fleet.max_batch.copy(),
        kv_capacity_tokens=fleet.kv_capacity_tokens.copy(),
        observed_slowdown=fleet.slowdown.copy(),
        costs=fleet.costs.copy(),
        residents=None,
        headroom=None,
        black_box=None,
        kept_joining=None,
    )


def full_token_ms(fleet: FleetView, context_tokens: float) -> tuple[Floats, Floats]:
    """float64[E] each: engine time of one output token, and a step, in the largest batch whose contexts have room."""
    room = fleet.kv_capacity_tokens / max(context_tokens, 1.0)
    batch = np.where(fleet.kv_capacity_tokens > 0, np.clip(room, 1.0, fleet.slots), fleet.slots)
    step = fleet.costs.decode_ms(batch, context_tokens * batch)
    return step / batch, step


def work_and_chance(fleet: FleetView, demand: Demand) -> tuple[Floats, Floats, Floats]:
    """Engine time of an output token, float64[E]; w_jg (engine milliseconds that one request of class j takes) and P_jg
    (in time at the step of a full batch, without a queue), float64[J, E] each."""
    tokens = demand.output_tokens
    context = float(((demand.input_tokens + tokens / 2) * tokens).sum() / max(tokens.sum(), 1.0))
    token_ms, step = full_token_ms(fleet, context)
    costs = fleet.costs
    inputs = demand.input_tokens[:, None]
    prefill = costs.p0_ms + inputs * (costs.d_ms + costs.e_ms * inputs / 2)
    outputs = tokens[:, None]
    work = prefill + outputs * token_ms
    slow = step * fleet.slowdown
    first = prefill + slow
    last = first + (outputs - 1.0) * slow
    spread = np.hypot(demand.spread, _SPREAD)[:, None]
    chance = _in_time(demand.left_ms[:, None] / last, spread)
    chance = chance * _in_time(demand.first_ms[:, None] / first, _SPREAD)
    tbt = np.where(demand.tbt_ms > 0, demand.tbt_ms, np.inf)[:, None]
    return token_ms, np.maximum(work, 1e-6), chance * _in_time(tbt / np.maximum(slow, 1e-6), _SPREAD)


def _in_time(ratio: Floats, spread: Floats | float) -> Floats:
    """P(time * error <= limit) for limit/time = ratio, by a logistic curve in the log."""
    x = np.log(np.maximum(ratio, 1e-9)) / spread
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-1.7 * x, -50.0, 50.0))))
