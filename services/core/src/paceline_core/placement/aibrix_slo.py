"""AIBrix's SLO rule: the most slack first."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.prediction import predict
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class AibrixSlo:
    """Takes the engine that leaves the most slack: time left minus predicted time, of the last token or, in the latency
    class, the smaller share of slack in TTFT and TBT. Without an objective: the smallest predicted time."""

    name: ClassVar[str] = "aibrix-slo"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: minus the slack, ms (latency class: as a share of the objective)."""
        times = predict(request, fleet)
        if np.isfinite(request.first_left_ms):
            first = 1.0 - times.first_token_ms / max(request.first_left_ms, 1.0)
            between = 1.0 - times.step_ms / request.slo.tbt_ms
            slack = np.minimum(first, between)
            return choose(request, fleet, -slack, lambda i: f"slack {slack[i]:.0%} of the objective")
        left = request.left_ms if np.isfinite(request.left_ms) else 0.0
        slack = left - times.last_token_ms
        return choose(request, fleet, -slack, lambda i: f"slack {slack[i]:.0f} ms")
