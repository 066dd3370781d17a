"""The engine with the smallest latency for an average answer."""

from dataclasses import dataclass
from typing import ClassVar

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.prediction import predict
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class LeastLatency:
    """Takes the engine with the smallest predicted latency, every answer taken to be as long as the pool's average:
    it knows the speeds and not the request."""

    name: ClassVar[str] = "least-latency"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: ms from now to the last token of an average answer."""
        times = predict(request, fleet, remaining_tokens=max(fleet.pool_output_tokens, 1.0)).last_token_ms
        return choose(request, fleet, times, lambda i: f"an average answer takes {times[i]:.0f} ms")
