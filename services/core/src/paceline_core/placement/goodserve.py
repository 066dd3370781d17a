"""GoodServe: the least capable engine that is still in time, and a re-check while the answer grows.

arXiv 2605.16867: T(r,g) = q_g + p_g*(L_in - H_rg) + d_g*L_out with smoothed black-box q, p, d and the cached prefix H;
feasible means T <= D; the least capable feasible engine is chosen, and the most capable one if none is feasible.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.moves import Move, Rectification
from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.residents import Ints, Residents
from paceline_core.placement.view import Bools, FleetView, Floats, RequestView

_NOBODY: Ints = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class GoodServe:
    """To the letter, where the paper has letters. Ours, because unpublished: the factor of the averages (the caller's
    `BlackBoxTimes`), what is assumed before anything was seen (the step-time model), and how capability is ordered
    (by the time of one reference request on the idle engine). A latency request's deadline is that of its
    last token at the expected length."""

    beta: float = 1.0
    """Feasible: T <= beta * D. The paper's is 1."""
    every_tokens: int = 50
    """Iterations between two checks of a request; 0: requests stay where they are."""
    refreshed: bool = True
    """True: the remaining length is what the distribution says, given what is out; False: the first estimate less what
    is out. The paper does not say."""

    name: ClassVar[str] = "goodserve"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.every_tokens < 0:
            raise ValueError(
                f"beta must be over 0 and every_tokens 0 or more, got {self.beta:g}, {self.every_tokens}"
            )

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: for feasible engines their rank from the least capable on; the others follow, the most capable
        first."""
        queue, prefill, decode = black_box(fleet)
        times = queue + prefill * request.uncached_tokens(len(fleet)) + decode * request.remaining_tokens
        scores = _rank(times <= self.beta * _left_ms(request), fleet.reference_ms, times)
        placement = choose(
            request, fleet, scores, lambda i: f"T = {times[i]:.0f} ms of {_left_ms(request):.0f}"
        )
        if not placement.found:
            return placement
        took = float(times[placement.engine])
        return Placement(placement.engine, placement.scores, placement.excluded, placement.reason, took)

    def rectify(self, fleet: FleetView, now_ms: float) -> Rectification:
        """Requests that wrote `every_tokens` since their last check and are at risk go to stronger engines, by the same
        rule; token ids travel, so the prompt and what is out are taken in again there."""
        live = fleet.residents
        if live is None or not self.every_tokens:
            return Rectification((), _NOBODY)
        due = (live.engine >= 0) & (live.generated - live.checked >= self.every_tokens)
        rows = np.flatnonzero(due & np.isfinite(live.due_ms))
        if not len(rows):
            return Rectification((), rows)
        queue, prefill, decode = black_box(fleet)
        left = self._left_tokens(live, rows)
        here = live.engine[rows]
        late = now_ms + decode[here] * left > live.due_ms[rows]
        moves = []
        for row, tokens in zip(rows[late].tolist(), left[late].tolist(), strict=True):
            source = int(live.engine[row])
            stronger = fleet.usable & (fleet.reference_ms < fleet.reference_ms[source])
            stronger &= fleet.roster.serving(fleet.models[source])
            if not stronger.any():
                continue
            again = float(live.prompt_tokens[row] + live.generated[row])
            times = queue + prefill * again + decode * tokens
            scores = _rank(times <= self.beta * (live.due_ms[row] - now_ms), fleet.reference_ms, times)
            target = int(np.where(stronger, scores, np.inf).argmin())
            stay, go = decode[source] * tokens, float(times[target])
            moves.append(
                Move(
                    key=int(live.key[row]),
                    source=source,
                    target=target,
                    gain=float(stay - go),
                    p_stay=0.0,
                    p_move=float(go <= live.due_ms[row] - now_ms),
                    reason=f"{stay:.0f} ms to go with {live.due_ms[row] - now_ms:.0f} left; there {go:.0f}",
                )
            )
        return Rectification(tuple(moves), rows)

    def _left_tokens(self, live: Residents, rows: Ints) -> Floats:
        if self.refreshed:
            return live.lengths.mean_left(rows, live.generated[rows])
        return np.asarray(np.maximum(live.first_mean[rows] - live.generated[rows], 1.0))


@dataclass(frozen=True)
class GoodServeNoMigration(GoodServe):
    """`goodserve` whose requests stay where they are."""

    every_tokens: int = 0

    name: ClassVar[str] = "goodserve-no-migration"


def black_box(fleet: FleetView) -> tuple[Floats, Floats, Floats]:
    """q, p and d, float64[E] each; the step-time model where nothing was seen yet."""
    costs = fleet.costs
    alone = np.where(costs.a1_ms > 0, costs.a1_ms, costs.a_ms + costs.b_ms)
    seen = fleet.black_box
    if seen is None:
        return np.zeros(len(fleet)), costs.d_ms, alone
    queue = np.nan_to_num(seen.queue_ms)
    prefill = np.where(np.isnan(seen.prefill_token_ms), costs.d_ms, seen.prefill_token_ms)
    return queue, prefill, np.where(np.isnan(seen.decode_token_ms), alone, seen.decode_token_ms)


def _left_ms(request: RequestView) -> float:
    """D: what is left of the time; of a latency request, until its last token at the expected length is due."""
    if np.isfinite(request.first_left_ms):
        return request.first_left_ms + (request.remaining_tokens - 1.0) * request.slo.tbt_ms
    return request.left_ms


def _rank(feasible: Bools, reference_ms: Floats, times: Floats) -> Floats:
    """Feasible engines by falling reference time, then the others by rising one. Engines of equal strength, by their
    times: the paper has no two of a kind."""
    slowest = float(reference_ms.max(initial=0.0))
    rank = np.where(feasible, slowest - reference_ms, slowest + reference_ms)
    return np.asarray(rank + 1e-6 * np.minimum(times, 1e6))
