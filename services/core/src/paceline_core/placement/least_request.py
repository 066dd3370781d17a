"""The engine with the fewest requests."""

from paceline_core.placement.policy import Placement, eligible, lowest, nothing_eligible
from paceline_core.placement.view import FleetView, RequestView


class LeastRequest:
    """Takes the engine with the fewest live requests; `weighted`: those on a slow engine count more."""

    name = "least-request"

    def __init__(self, weighted: bool = False) -> None:
        self._weighted = weighted

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The engine with the fewest live requests, placed and not yet reported ones included."""
        may, reasons = eligible(request, fleet)
        if not may.any():
            return nothing_eligible(fleet, reasons)
        live = fleet.live_requests
        scores = (live + 1) * fleet.speed_factor if self._weighted else live
        engine, shown = lowest(scores, may)
        return Placement(engine, shown, reasons, f"{live[engine]:.0f} live requests")
