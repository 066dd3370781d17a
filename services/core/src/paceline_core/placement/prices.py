"""Shadow prices: what a millisecond of each engine is worth, given what is asked for.

The linear program: classes j come at rate r_j, a share x_jg of them goes to engine g, where one takes w_jg of its
milliseconds and is in time with probability P_jg:

    maximise  sum r_j x_jg P_jg v_j   such that   sum_j r_j x_jg w_jg <= 1 for every g,   sum_g x_jg <= 1 for every j

Its duals are found by price iteration: at given prices every class goes where P*v - price*w is best (softly, so that
equal engines share), prices rise where more than a whole engine is asked for and fall where less is.
"""

from typing import Final

import numpy as np

from paceline_core.placement.demand import Demand
from paceline_core.placement.view import FleetView, Floats

ROUNDS: Final = 40
_SOFT: Final = 0.05
"""Net value within which classes do not mind."""
_STEP: Final = 0.15
_SPREAD: Final = 0.25
"""Error of predicted times, as a share; beside the spread of the lengths."""


def reprice(prices: Floats | None, fleet: FleetView, demand: Demand, rounds: int = ROUNDS) -> Floats:
    """New prices, float64[E], value per millisecond, from the last ones (None: from nothing). Pure; to be kept by the
    caller and renewed about once a second: the iteration goes on where it ended."""
    count = len(fleet)
    price = np.zeros(count) if prices is None or len(prices) != count else prices.copy()
    usable = fleet.usable
    if not len(demand) or not usable.any():
        return np.zeros(count)
    work, chance = work_and_chance(fleet, demand)
    worth = chance * demand.value[:, None]
    worth[:, ~usable] = -np.inf
    load = demand.rate_per_ms[:, None] * work
    # What a millisecond can be worth at most sets the scale of a step.
    scale = np.where(usable, np.max(np.where(usable, worth, 0.0) / work, axis=0), 0.0)
    for k in range(rounds):
        net = worth - price * work
        best = np.maximum(net.max(axis=1, keepdims=True), 0.0)
        share = np.exp(np.minimum((net - best) / _SOFT, 0.0))
        # Not to be served at all is a choice too, worth nothing.
        share /= share.sum(axis=1, keepdims=True) + np.exp(-best / _SOFT)
        asked = (share * load).sum(axis=0)
        step = _STEP / (1.0 + k / 10.0)
        price = np.clip(price + step * scale * np.clip(asked - 1.0, -1.0, 2.0), 0.0, scale)
    return np.asarray(price)


def full_step_ms(fleet: FleetView) -> Floats:
    """float64[E]: a decode step of the full batch, at the contexts that are there now."""
    resident = np.maximum(fleet.running + fleet.paused, 1.0)
    context = np.where(fleet.running > 0, fleet.kv_used_tokens / resident, 512.0)
    return fleet.costs.decode_ms(fleet.slots, context * fleet.slots)


def work_and_chance(fleet: FleetView, demand: Demand) -> tuple[Floats, Floats]:
    """w_jg (engine milliseconds that one request of class j takes in a full batch) and P_jg (in time at the step of a
    full batch, without a queue), float64[J, E] each."""
    step = full_step_ms(fleet)
    costs = fleet.costs
    inputs = demand.input_tokens[:, None]
    prefill = costs.p0_ms + inputs * (costs.d_ms + costs.e_ms * inputs / 2)
    outputs = demand.output_tokens[:, None]
    work = prefill + outputs * step / fleet.slots
    first = prefill + step
    last = first + (outputs - 1.0) * step
    spread = np.hypot(demand.spread, _SPREAD)[:, None]
    chance = _in_time(demand.left_ms[:, None] / last, spread)
    chance = chance * _in_time(demand.first_ms[:, None] / first, _SPREAD)
    tbt = np.where(demand.tbt_ms > 0, demand.tbt_ms, np.inf)[:, None]
    return np.maximum(work, 1e-6), chance * _in_time(tbt / np.maximum(step, 1e-6), _SPREAD)


def _in_time(ratio: Floats, spread: Floats | float) -> Floats:
    """P(time * error <= limit) for limit/time = ratio, by a logistic curve in the log."""
    x = np.log(np.maximum(ratio, 1e-9)) / spread
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-1.7 * x, -50.0, 50.0))))
