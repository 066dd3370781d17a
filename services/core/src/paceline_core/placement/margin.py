"""`margin`: the best of own P(meet), what the residents lose, and what the engine's time is worth to others."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.forward import look_ahead, value_of
from paceline_core.placement.margin_moves import MoveRules, priced_moves
from paceline_core.placement.meeting import LengthChance, p_meet
from paceline_core.placement.moves import Rectification
from paceline_core.placement.policy import (
    EstimateUse,
    Exclusions,
    Placement,
    best_of,
    eligible,
    nothing_eligible,
)
from paceline_core.placement.prediction import AGE_SCALE_MS, Prediction, predict
from paceline_core.placement.residents import Ints
from paceline_core.placement.view import Bools, FleetView, Floats, RequestView


@dataclass(frozen=True)
class Margin:
    """Worth of an engine = P(meet) there - `resident_weight` * fall of the residents' P(meet) - `price_weight` * its
    price * its time taken. First all engines at once, by prediction and headroom curves; then the best
    `candidates` by the forward model. Among engines of equal worth (within `tolerance`) the fastest.

    So an idle fleet (no prices, nobody to hurt, every deadline safe) gives the fastest engine; near saturation prices
    rise on the strong engines, and a request goes where its P(meet) is bought cheapest: just enough; in overload a
    request without hope goes where it takes the least from others.
    """

    candidates: int = 4
    tolerance: float = 0.02
    refill: float = 0.5
    """Share of departures that newcomers are expected to make good."""
    size_power: float = 0.5
    """What a request is worth: (its prompt and expected output in thousands of tokens) to this power. 0: all the same,
    so that attained requests count; 1: their tokens do."""
    resident_weight: float = 1.0
    price_weight: float = 1.0
    age_scale_ms: float = AGE_SCALE_MS
    """Age of a load report at which its predictions count double: staleness as uncertainty."""
    every_tokens: int = 50
    """Output tokens between two checks of a request for a move; 0: requests stay where they are."""
    at_risk: float = 0.5
    """P(meet) below which a request looks for another engine."""
    hysteresis: float = 0.2
    """Least gain of a move."""
    max_moves: int = 2
    """Moves of one request."""
    moves_per_engine: int = 1
    """Moves from, and to, one engine in one call."""
    move_ms: float = 20.0
    """What a move costs besides the prefill of what is out."""

    name: ClassVar[str] = "margin"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def __post_init__(self) -> None:
        if (
            self.candidates < 1
            or not 0 <= self.refill <= 1
            or not self.age_scale_ms > 0
            or self.tolerance < 0
        ):
            raise ValueError(
                "candidates >= 1, refill in [0, 1], age_scale_ms > 0 and tolerance >= 0 are needed"
            )

    def value(self, request: RequestView) -> float:
        """What it is worth to have the request in time."""
        return value_of(request.prompt_tokens + request.mean_tokens, self.size_power)

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: minus the worth."""
        may, excluded = eligible(request, fleet)
        if not may.any():
            return nothing_eligible(fleet, excluded)
        times = predict(request, fleet, self.age_scale_ms)
        tokens = (request.left_ms - times.start_ms - times.prefill_ms) / times.step_ms
        within = LengthChance(request)
        chance = p_meet(request, within, times.start_ms, times.prefill_ms, times.step_ms, tokens)
        price = self._price(request, fleet, times)
        value = self.value(request)
        worth = chance * value - price
        last_ms = times.last_token_ms
        fastest = best_of(last_ms, may)
        unhurt = fleet.live_requests[fastest] == 0
        if unhurt:
            top = float(np.where(may, worth, -np.inf).max())
            if worth[fastest] >= top - self.tolerance * value:
                worth[fastest] = top  # equal to it within the tolerance
                return _answer(excluded, may, worth, fastest, last_ms, chance, "the fastest, idle")
        crowded = worth - self._crowding(request, fleet)
        if fleet.residents is None:
            best = np.where(may, crowded, -np.inf)
            top = float(best.max())
            close = best >= top - self.tolerance * value
            chosen = int(np.where(close, last_ms, np.inf).argmin())
            crowded[chosen] = top
            return _answer(excluded, may, crowded, chosen, last_ms, chance, "by prediction")
        few = self._shortlist(crowded, may, fastest)
        ahead = look_ahead(request, fleet, few, now_ms, self.refill, self.size_power)
        doubt = 1.0 + fleet.load_age_ms[few] / self.age_scale_ms
        exact = p_meet(
            request, within, ahead.start_ms * doubt, ahead.prefill_ms, ahead.step_ms, ahead.tokens / doubt
        )
        dear = price[few]
        net = exact * value - self.resident_weight * ahead.drop - dear
        top = float(net.max())
        place = int(np.where(net >= top - self.tolerance * value, ahead.last_ms, np.inf).argmin())
        chosen = int(few[place])
        shown = np.minimum(worth, top)
        shown[few] = net
        shown[chosen] = top
        last_ms[few], chance[few] = ahead.last_ms, exact
        detail = f"residents lose {ahead.drop[place]:.2f}, its time is worth {dear[place]:.2f}"
        return _answer(excluded, may, shown, chosen, last_ms, chance, detail)

    def rectify(self, fleet: FleetView, now_ms: float) -> Rectification:
        """Priced moves, up and down: see `margin_moves`."""
        rules = MoveRules(
            every_tokens=self.every_tokens,
            at_risk=self.at_risk,
            hysteresis=self.hysteresis,
            max_moves=self.max_moves,
            per_engine=self.moves_per_engine,
            move_ms=self.move_ms,
            refill=self.refill,
            resident_weight=self.resident_weight,
            price_weight=self.price_weight,
            size_power=self.size_power,
        )
        return priced_moves(fleet, now_ms, rules)

    def _price(self, request: RequestView, fleet: FleetView, times: Prediction) -> Floats:
        prices = fleet.prices
        if prices is None or not self.price_weight:
            return np.zeros(len(fleet))
        work = times.prefill_ms + request.remaining_tokens * prices.token_ms
        return np.asarray(self.price_weight * prices.per_ms * work)

    def _crowding(self, request: RequestView, fleet: FleetView) -> Floats | float:
        """What the headroom curves say: the share of its tokens that is not free by the time it is due."""
        curves = fleet.headroom
        if curves is None or not math.isfinite(request.left_ms):
            return 0.0
        left_ms = max(request.left_ms, 0.0)
        at = min(int(curves.horizon_ms.searchsorted(left_ms)), len(curves.horizon_ms) - 1)
        share = min(left_ms / float(curves.horizon_ms[at]), 1.0)
        short = 1.0 - curves.free_decode_tokens[:, at] * (share / request.remaining_tokens)
        short = np.fmax(short, 0.0)  # 0 too where there is no curve; it cannot be over 1
        return np.asarray(short * (0.5 * self.resident_weight))

    def _shortlist(self, worth: Floats, may: Bools, fastest: int) -> Ints:
        """The best few, the fastest among them."""
        loss = np.where(may, -worth, np.inf)
        loss[fastest] = -np.inf
        if len(loss) > self.candidates:
            few = np.argpartition(loss, self.candidates - 1)[: self.candidates]
            return np.asarray(few[may[few]])
        return np.flatnonzero(may)


def _answer(
    excluded: Exclusions, may: Bools, worth: Floats, engine: int, last_ms: Floats, chance: Floats, detail: str
) -> Placement:
    took, sure = float(last_ms[engine]), min(max(float(chance[engine]), 0.0), 1.0)
    reason = f"P(meet) {sure:.2f}, last token in {took:.0f} ms, {detail}"
    return Placement(engine, np.where(may, -worth, np.nan), excluded, reason, took, sure)
