"""Prefix matching and forecasts, in NumPy: the reference for the ONNX graph that serves, and what training runs.

The distance of a partial task q to a pattern m is taken over the positions p that q has seen, on the attributes that q
knows:

    d(q, m) = E^(growth - 1) * sum_p recency^(last - p) * sum_a w_a * (q_pa - m_pa)^2,    E = sum_p recency^(last - p)

Patterns with fewer stages than q are out. A component's weight is

    count * exp(-sharpness * (d - (1 - unlikeness) * least d of its group) / 2 - cost of its group),

where the groups are the patterns of q's application and all others; the others' counts are scaled to add up to 1.
The NEAREST heaviest and a background (what tasks do in general) form the mixture that every quantity is read from.
Sharpness 0 is what the application's tasks that got this far still needed, whatever they looked like; it is set per
task, as what was learned of the application says.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.tasks.params import (
    CARRY_AFTER_STAGES,
    GRID_POINTS,
    GRID_STEP,
    MAX_SHIFT,
    MIN_REST,
    NEAREST,
    SHARES,
    MatcherParams,
)
from paceline_core.tasks.pattern import (
    ACTOR_POINTS,
    CRITICAL,
    FIRST,
    INPUT,
    LOG_OF_BYTE,
    MODEL_CALLS,
    OUTPUT,
    PAST,
    TOOL_MS,
    A,
    P,
    PartialBatch,
    PatternTable,
)

Floats = NDArray[np.float64]
NO_MATCH = -1e9


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What B tasks still need; Q quantile levels."""

    remaining_stages: Floats
    """float64[B]: expected stages that have not ended, the running one included."""
    remaining_calls: Floats
    """float64[B]: expected model calls that have not begun."""
    last_probability: Floats
    """float64[B]: probability that no stage follows those seen."""
    tokens: Floats
    """float64[B, Q]: output tokens to come."""
    critical_tokens: Floats
    """float64[B, Q]: output tokens to come along the critical path."""
    shares: Floats
    """float64[B, SHARES]: of the work to come, by stage, the current one first; rows sum to 1."""
    coming: Floats
    """float64[B, SHARES, 4]: of each coming stage, if it comes: calls, prompt tokens, critical tokens, tool ms."""
    coming_probability: Floats
    """float64[B, SHARES]: probability that the stage comes."""
    nearest: NDArray[np.int64]
    """int64[B, n]: patterns by weight, n <= NEAREST."""
    mass: Floats
    """float64[B, n]: their share of the mixture; the background has the rest."""
    similarity: Floats
    """float64[B]: Gaussian kernel of the mean distance a position to the heaviest pattern; 0: there is none."""


def forecast(
    batch: PartialBatch,
    table: PatternTable,
    params: MatcherParams,
    levels: Floats,
    sharpness: Floats,
) -> Forecasts:
    """Forecast B tasks. `levels` is [B, Q], in (0, 1); `sharpness` [B], >= 0."""
    logits, mean_distance = _logits(batch, table, params, sharpness)
    k = min(NEAREST, len(table))
    nearest = np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)
    chosen = np.take_along_axis(logits, nearest, axis=1)
    alive = chosen > NO_MATCH / 2
    all_logits = np.concatenate([chosen, np.full((len(batch), 1), -params.background_cost)], axis=1)
    weights = np.exp(all_logits - all_logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mass, background = weights[:, :k], weights[:, k:]

    cells = table.cells[nearest]
    logs = cells[..., :A].astype(np.float64) * LOG_OF_BYTE
    values = np.expm1(logs)
    stages = table.stages[nearest].astype(np.float64)
    own = (table.apps[nearest] == batch.apps[:, None]) & (batch.apps[:, None] != 0)

    seen = batch.stages.astype(np.float64)
    current = seen - batch.running
    later = _overlap(seen[:, None, None], stages)
    before = np.maximum(np.minimum(PAST, current[:, None, None]) - FIRST, 0.0)
    slots = current[:, None] + np.arange(SHARES)
    at = ((slots[..., None] >= FIRST) & (slots[..., None] < PAST)).astype(np.float64)
    exists = (slots[:, None, :] < stages[..., None]).astype(np.float64) * alive[..., None]

    def of_slots(attribute: int) -> Floats:
        return np.asarray(np.einsum("bhp,bkp->bkh", at, values[..., attribute]) * exists)

    def rest(attribute: int, out: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Of the current stage if it runs, and of all stages that come after those seen: float64[B, k] each."""
        whole = of_slots(attribute)[..., 0]
        least = MIN_REST * whole if attribute != MODEL_CALLS else 0.0
        now = np.maximum(whole - out[:, None], least) * batch.running[:, None]
        return np.asarray(now, dtype=np.float64), np.asarray((later * values[..., attribute]).sum(axis=2))

    calls_now, calls_later = rest(MODEL_CALLS, batch.out[:, 0])
    tokens_now, tokens_later = rest(OUTPUT, batch.out[:, 1])
    critical_now, critical_later = rest(CRITICAL, batch.out[:, 2])
    critical = critical_now + critical_later

    to_come = np.maximum(stages - current[:, None], 0.0) * alive
    bg_stages = np.exp(params.background_stages[0] + params.background_stages[1] * np.log1p(seen))
    bg_stages = np.maximum(bg_stages, 1.0)
    over = to_come == 0
    last = (stages == seen[:, None]) & alive
    ends = params.background_end * (seen > 0)
    ended = ends * (1.0 - batch.running)

    done = (before * values[..., CRITICAL]).sum(axis=2)
    shift = np.log1p(batch.done_critical)[:, None].astype(np.float64) - np.log1p(done)
    carried = params.scale_carry * current / (current + CARRY_AFTER_STAGES)
    shift = carried[:, None] * np.clip(shift, -MAX_SHIFT, MAX_SHIFT)
    a, b, c = params.background_log
    bg_log = a + b * np.log1p(batch.done_critical) + c * np.log1p(seen)
    spread = np.where(own, params.spread, params.other_spread)

    def quantiles(amount: Floats, background_log: Floats) -> Floats:
        middle = np.log1p(amount) + shift
        grid = np.arange(GRID_POINTS) * GRID_STEP
        z = (grid - middle[..., None]) / spread[..., None]
        cdf = np.where(over[..., None], 1.0, _normal_cdf(z))
        z = (grid - background_log[:, None]) / params.background_spread
        behind = ended[:, None] + (1 - ended[:, None]) * _normal_cdf(z)
        mixed = (mass[..., None] * cdf).sum(axis=1) + background * behind
        return np.expm1(_quantile_of_grid(mixed, levels))

    shares = _shares(of_slots(CRITICAL), critical_now, critical, batch.running)
    mass_left = mass * ~over
    bg_left = background[:, 0] * (1 - ended)
    bg_shares = _even_shares(bg_stages)
    share = (mass_left[..., None] * shares).sum(axis=1) + bg_left[:, None] * bg_shares
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    # The median wastes less of a budget than the mean where a task may be short or long; later stages keep their
    # ratios.
    now = _median(
        np.concatenate([shares[..., 0], bg_shares[:, :1]], axis=1),
        np.concatenate([mass_left, bg_left[:, None]], axis=1),
    )
    later_shares = share[:, 1:] * (1.0 - now) / np.maximum(share[:, 1:].sum(axis=1, keepdims=True), 1e-9)
    share = np.concatenate([1.0 - later_shares.sum(axis=1, keepdims=True), later_shares], axis=1)

    probability = (mass[..., None] * exists).sum(axis=1)
    coming = np.stack(
        [
            (mass[..., None] * of_slots(x)).sum(axis=1) / np.maximum(probability, 1e-9)
            for x in (MODEL_CALLS, INPUT, CRITICAL, TOOL_MS)
        ],
        axis=2,
    )
    best = nearest[:, 0] if k else np.zeros(len(batch), dtype=np.int64)
    similar = np.exp(-0.5 * mean_distance[np.arange(len(batch)), best]) * alive[:, 0] if k else bg_left * 0
    return Forecasts(
        remaining_stages=(mass * to_come).sum(axis=1) + bg_left * bg_stages,
        remaining_calls=(mass * (calls_now + calls_later)).sum(axis=1) + bg_left * bg_stages,
        last_probability=(mass * last).sum(axis=1) + background[:, 0] * ends,
        tokens=quantiles(tokens_now + tokens_later, bg_log + params.background_fanout_log),
        critical_tokens=quantiles(critical, bg_log),
        shares=share,
        coming=coming,
        coming_probability=probability,
        nearest=nearest,
        mass=mass,
        similarity=similar,
    )


def distance_parts(
    batch: PartialBatch, table: PatternTable, recency: float
) -> tuple[NDArray[np.float32], Floats]:
    """Weighted squared differences by attribute, float32[A + 1, B, M] (actors last), and E of each task, float64[B]."""
    weight = _position_weights(batch, recency)
    logs = table.cells[..., :A].astype(np.float32) * LOG_OF_BYTE
    points = ACTOR_POINTS[table.cells[..., A]]
    parts = np.empty((A + 1, len(batch), len(table)), dtype=np.float32)
    for a in range(A):
        w = weight * batch.known[..., a]
        q, m = batch.values[..., a], logs[..., a]
        parts[a] = (w * q * q).sum(axis=1)[:, None] - 2 * (w * q) @ m.T + w @ (m * m).T
    w = weight * (batch.actors > 0)
    q = ACTOR_POINTS[batch.actors]
    square = (points * points).sum(axis=2)
    cross = np.einsum("bpd,mpd->bm", w[..., None] * q, points)
    parts[A] = (w * (q * q).sum(axis=2)).sum(axis=1)[:, None] - 2 * cross + w @ square.T
    return np.maximum(parts, 0.0), weight.sum(axis=1).astype(np.float64)


def _logits(
    batch: PartialBatch, table: PatternTable, params: MatcherParams, sharpness: Floats
) -> tuple[Floats, Floats]:
    """Log weights and mean distances a position, float64[B, M] each."""
    parts, effective = distance_parts(batch, table, params.recency)
    scales = np.array([*params.weights, params.actor_weight])
    total = np.tensordot(scales, parts.astype(np.float64), axes=1)
    effective = np.maximum(effective, 1e-6)[:, None]
    own = (table.apps[None, :] == batch.apps[:, None]) & (batch.apps[:, None] != 0)
    alive = table.stages[None, :] >= batch.stages[:, None]
    half = 0.5 * sharpness[:, None] * total * effective ** (params.growth - 1.0)
    counts = np.maximum(table.weights, 1e-9)
    others = np.maximum((counts * ~own).sum(axis=1, keepdims=True), 1e-9)
    weight = np.log(counts) - np.where(own, 0.0, params.other_app_cost + np.log(others))
    least = np.where(own, group_least(half, own & alive), group_least(half, ~own & alive))
    logits = weight - half + (1.0 - params.unlikeness) * least
    return np.where(alive, logits, NO_MATCH), total / effective


def group_least(distance: Floats, group: NDArray[np.bool_]) -> Floats:
    """Least distance within a group, float64[B, 1]; 0 where the group is empty."""
    least = np.where(group, distance, -NO_MATCH).min(axis=1, keepdims=True, initial=-NO_MATCH)
    return np.where(least < -NO_MATCH / 2, least, 0.0)


def _position_weights(batch: PartialBatch, recency: float) -> NDArray[np.float32]:
    """recency^(last - p) on the positions seen, 0 elsewhere: float32[B, P]."""
    seen = batch.stages[:, None] > FIRST
    back = seen.sum(axis=1, keepdims=True) - 1 - np.arange(P)
    return np.where(seen, recency ** np.maximum(back, 0), 0.0).astype(np.float32)


def _overlap(start: Floats, stages: Floats) -> Floats:
    """Stages of each position from `start` [B, 1, 1] up to the pattern's end [B, k]: float64[B, k, P]."""
    return np.asarray(np.maximum(np.minimum(PAST, stages[..., None]) - np.maximum(FIRST, start), 0.0))


def _shares(slots: Floats, now: Floats, whole: Floats, running: NDArray[np.float32]) -> Floats:
    """Shares by stage of each pattern, float64[B, k, SHARES]; the last one is what the others leave."""
    work = slots[..., : SHARES - 1].copy()
    work[..., 0] = np.where(running[:, None] > 0, now, work[..., 0])
    share = work / np.maximum(whole, 1e-9)[..., None]
    rest = np.maximum(1.0 - share.sum(axis=2, keepdims=True), 0.0)
    return np.concatenate([share, rest], axis=2)


def _median(values: Floats, weights: Floats) -> Floats:
    """Weighted medians of rows, float64[B, 1]: the least value that holds half of the weight."""
    order = values.argsort(axis=1, kind="stable")
    total = np.take_along_axis(weights, order, axis=1).cumsum(axis=1)
    at = (total < 0.5 * total[:, -1:]).sum(axis=1, keepdims=True)
    return np.asarray(np.take_along_axis(values, np.take_along_axis(order, at, axis=1), axis=1))


def _even_shares(stages: Floats) -> Floats:
    """Equal shares of `stages` [B] (>= 1) stages, float64[B, SHARES]."""
    up_to = np.minimum((np.arange(SHARES) + 1.0) / stages[:, None], 1.0)
    up_to[:, -1] = 1.0
    return np.asarray(np.diff(up_to, axis=1, prepend=0.0))


def _quantile_of_grid(cdf: Floats, levels: Floats) -> Floats:
    """Points of the grid, in log(1 + tokens), where CDFs [B, G] reach levels [B, Q]; linear in between."""
    above = np.minimum((cdf[:, None, :] < levels[..., None]).sum(axis=2), GRID_POINTS - 1)
    below = np.maximum(above - 1, 0)
    high = np.take_along_axis(cdf, above, axis=1)
    low = np.take_along_axis(cdf, below, axis=1)
    part = np.clip((levels - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    return np.asarray(GRID_STEP * (below + part * (above - below)))


def _normal_cdf(z: Floats) -> Floats:
    """Standard normal CDF by the logistic curve of Page (1977), error below 2e-4: the graph uses the same."""
    z = np.clip(z, -8.0, 8.0)
    return np.asarray(1.0 / (1.0 + np.exp(-2.0 * math.sqrt(2.0 / math.pi) * z * (1.0 + 0.044715 * z * z))))
