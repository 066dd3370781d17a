"""Priced moves: requests at risk go where their risk is clearly lower, loose ones leave engines that others need."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core.placement.forward import look_ahead, value_of
from paceline_core.placement.moves import Move, Rectification
from paceline_core.placement.prices import Prices
from paceline_core.placement.residents import Ints, Residents
from paceline_core.placement.view import FleetView, Floats, RequestView
from paceline_core.slo import Slo, SloClass

_NOBODY: Final[Ints] = np.empty(0, dtype=np.int64)
_LOOKS: Final = 16
"""Requests priced against the whole fleet in one call."""
_WAITED_MS: Final = 500.0
"""A request that waits without a token is looked at after this."""
_SAFE: Final = 0.9
_FAR: Final = 1e9


@dataclass(frozen=True, slots=True)
class MoveRules:
    """Fields as in `Margin`."""

    every_tokens: int
    at_risk: float
    hysteresis: float
    max_moves: int
    per_engine: int
    move_ms: float
    refill: float
    resident_weight: float
    price_weight: float
    size_power: float


@dataclass(frozen=True, slots=True)
class _Engines:
    """What a decision about any request reads, float64[E] each."""

    start_ms: Floats
    step_ms: Floats
    joined_ms: Floats
    price: Floats
    token_ms: Floats


def priced_moves(fleet: FleetView, now_ms: float, rules: MoveRules) -> Rectification:
    """Moves whose gain exceeds the hysteresis, best first, within the budgets. None while nobody could be in time
    anywhere: then moving makes it worse for all."""
    live = fleet.residents
    if live is None or not rules.every_tokens or len(fleet) < 2:
        return Rectification((), _NOBODY)
    rows = _due(live, now_ms, rules)
    if not len(rows):
        return Rectification((), rows)
    engines = _engines(fleet, rules)
    here = live.engine[rows]
    waits = live.generated[rows] == 0
    left_ms = live.due_ms[rows] - now_ms
    stay_ms = left_ms - np.where(waits, engines.start_ms[here], 0.0)
    reach = np.clip(stay_ms / engines.step_ms[here], 0.0, _FAR).astype(np.int64)
    p_stay = live.lengths.p_within(rows, live.generated[rows], reach)
    left = live.lengths.mean_left(rows, live.generated[rows])
    held = rules.price_weight * engines.price[here] * left * engines.token_ms[here]
    looked = _chosen(p_stay, held, rules)
    moves = []
    for k in looked.tolist():
        found = _best_target(
            fleet, live, engines, int(rows[k]), float(p_stay[k]), float(held[k]), now_ms, rules
        )
        if found is not None:
            moves.append(found)
    return Rectification(_within_budget(moves, rules), rows)


def _due(live: Residents, now_ms: float, rules: MoveRules) -> Ints:
    wrote = live.generated - live.checked >= rules.every_tokens
    waited = (live.generated == 0) & (now_ms - live.placed_ms >= _WAITED_MS)
    may = (live.engine >= 0) & np.isfinite(live.due_ms) & (live.moves < rules.max_moves)
    return np.flatnonzero(may & (wrote | waited) & (live.due_ms > now_ms))


def _engines(fleet: FleetView, rules: MoveRules) -> _Engines:
    live, slots = np.maximum(fleet.live_requests, 1.0), fleet.slots
    resident = np.maximum(fleet.running + fleet.paused, 1.0)
    context = fleet.kv_used_tokens / resident
    batch = np.minimum(live, slots)
    step = np.maximum(fleet.costs.decode_ms(batch, context * batch) * fleet.slowdown, 1e-6)
    more = np.minimum(live + 1.0, slots)
    joined = np.maximum(fleet.costs.decode_ms(more, context * more) * fleet.slowdown, 1e-6)
    backlog = fleet.queued_prefill_tokens + fleet.pending_prefill_tokens
    owed = (fleet.expected_output_tokens + fleet.pending_output_tokens) / live
    start = fleet.costs.d_ms * backlog + np.maximum(live + 1.0 - slots, 0.0) * owed * step / slots
    prices = fleet.prices or Prices(np.zeros(len(fleet)), step / batch)
    return _Engines(start, step, joined, prices.per_ms, prices.token_ms)


def _chosen(p_stay: Floats, held: Floats, rules: MoveRules) -> Ints:
    """Half of the looks to those at risk who are not lost yet, half to safe ones that hold the dearest time."""
    risky = np.flatnonzero(p_stay < rules.at_risk)
    risky = risky[np.argsort(-p_stay[risky], kind="stable")][: _LOOKS // 2]
    safe = np.flatnonzero((p_stay >= _SAFE) & (held > rules.hysteresis))
    safe = safe[np.argsort(-held[safe], kind="stable")][: _LOOKS // 2]
    return np.concatenate([risky, safe])


def _best_target(
    fleet: FleetView,
    live: Residents,
    engines: _Engines,
    row: int,
    p_stay: float,
    held: float,
    now_ms: float,
    rules: MoveRules,
) -> Move | None:
    source = int(live.engine[row])
    may = fleet.usable & fleet.roster.serving(fleet.models[source])
    may[source] = False
    if not may.any():
        return None
    out = int(live.generated[row])
    again = np.full(len(fleet), float(live.prompt_tokens[row] + out))
    start = engines.start_ms + fleet.costs.prefill_ms(again) + rules.move_ms
    reach = np.clip((live.due_ms[row] - now_ms - start) / engines.joined_ms, 0.0, _FAR).astype(np.int64)
    same = np.full(len(fleet), row)
    p_there = live.lengths.p_within(same, np.full(len(fleet), out), reach)
    left = float(live.lengths.mean_left(same[:1], np.array([out]))[0])
    work = start - engines.start_ms + left * engines.token_ms
    value = value_of(float(live.prompt_tokens[row] + live.first_mean[row]), rules.size_power)
    net = np.where(may, p_there * value - rules.price_weight * engines.price * work, -np.inf)
    target = int(net.argmax())
    # Only the best one is worth the forward model, and only if it could win.
    if net[target] - (p_stay * value - held) <= rules.hysteresis * value:
        return None
    request, only = _as_request(live, row, now_ms), np.array([target])
    ahead = look_ahead(request, fleet, only, now_ms, rules.refill, rules.size_power)
    drop = float(ahead.drop[0])
    gain = float(net[target]) - rules.resident_weight * drop - (p_stay * value - held)
    p_move = float(p_there[target])
    clearly = p_move >= max(rules.at_risk, p_stay + rules.hysteresis if p_stay < rules.at_risk else _SAFE)
    if gain <= rules.hysteresis * value or not clearly:
        return None
    way = "at risk" if p_stay < rules.at_risk else "makes room"
    reason = f"{way}: P(meet) {p_stay:.2f} here, {p_move:.2f} there, residents there lose {drop:.2f}"
    return Move(int(live.key[row]), source, target, gain, p_stay, p_move, reason)


def _as_request(live: Residents, row: int, now_ms: float) -> RequestView:
    arrival = float(live.arrival_ms[row])
    return RequestView(
        model="",
        prompt_tokens=int(live.prompt_tokens[row]),
        max_tokens=int(live.max_tokens[row]),
        length_cdf=live.lengths.cdf[row].astype(np.float64),
        slo=Slo(SloClass.DEADLINE, e2e_ms=float(live.due_ms[row]) - arrival),
        elapsed_ms=now_ms - arrival,
        replayed_tokens=int(live.generated[row]),
    )


def _within_budget(moves: list[Move], rules: MoveRules) -> tuple[Move, ...]:
    out: dict[int, int] = {}
    into: dict[int, int] = {}
    kept = []
    for move in sorted(moves, key=lambda move: -move.gain):
        if out.get(move.source, 0) >= rules.per_engine or into.get(move.target, 0) >= rules.per_engine:
            continue
        out[move.source] = out.get(move.source, 0) + 1
        into[move.target] = into.get(move.target, 0) + 1
        kept.append(move)
    return tuple(kept)
