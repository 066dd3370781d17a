"""Preble: shared prefixes where they are, new ones where there is least to do."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.least_load import drain_ms
from paceline_core.placement.policy import EstimateUse, Placement, choose, eligible
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class Preble:
    """Exploits the longest cached prefix when it is more than `exploit_share` of the prompt, explores otherwise
    (arXiv 2407.00023): then the least of load, prefill of what is missing, and what must be evicted for it.

    The load is the drain time, where the paper sums a window of past costs; an engine that is `imbalance` times as
    loaded as the least loaded one is not exploited.
    """

    exploit_share: float = 0.5
    imbalance: float = 3.0
    weighted: bool = True
    """False: costs of all engines are taken to be those of the mean engine."""

    name: ClassVar[str] = "preble"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: ms of load and own cost; exploiting, infinite where the prefix is shorter."""
        missing = request.uncached_tokens(len(fleet))
        load = drain_ms(fleet)
        own = fleet.costs.prefill_ms(missing)
        if not self.weighted and len(fleet):
            load, own = load * fleet.speed, own * fleet.speed
        free = np.maximum(fleet.kv_capacity_tokens - fleet.kv_used_tokens, 0.0)
        evicted = np.maximum(missing + request.remaining_tokens - free, 0.0) * fleet.costs.d_ms
        cost = load + own + evicted
        cached = request.input_tokens - missing
        may, _ = eligible(request, fleet)
        best = float(np.where(may, cached, 0.0).max(initial=0.0))
        if best > self.exploit_share * request.input_tokens:
            least = float(np.where(may, load, np.inf).min())
            hold = (cached >= best) & (load <= self.imbalance * max(least, float(own.mean())))
            if (hold & may).any():
                cost = np.where(hold, cost, np.inf)
        return choose(request, fleet, cost, lambda i: f"{cached[i]:.0f} tokens cached, cost {cost[i]:.0f} ms")
