"""The engine with the fewest requests."""

from dataclasses import dataclass
from typing import ClassVar

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class LeastRequest:
    """Takes the engine with the fewest live requests, placed and not yet reported ones included."""

    weighted: bool = False
    """True: requests on a slow engine count more, by its speed."""

    name: ClassVar[str] = "least-request"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: live requests; weighted, those with this one, over the speed."""
        live = fleet.live_requests
        scores = (live + 1) / fleet.speed if self.weighted else live
        return choose(request, fleet, scores, lambda i: f"{live[i]:.0f} live requests")


@dataclass(frozen=True)
class WeightedLeastRequest(LeastRequest):
    """`least-request`, weighted by speed."""

    weighted: bool = True

    name: ClassVar[str] = "weighted-least-request"
