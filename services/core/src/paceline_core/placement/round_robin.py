"""Engines in turn."""

import numpy as np

from paceline_core.placement.policy import Placement, eligible, nothing_eligible
from paceline_core.placement.view import FleetView, RequestView


class RoundRobin:
    """Takes the next eligible engine after the last one chosen. Its only state is that position."""

    name = "round-robin"

    def __init__(self) -> None:
        self._next = 0

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The next eligible engine; scores are places in the turn."""
        may, reasons = eligible(request, fleet)
        if not may.any():
            return nothing_eligible(fleet, reasons)
        turn = (np.arange(len(fleet)) - self._next) % len(fleet)
        scores = np.where(may, turn.astype(np.float64), np.nan)
        engine = int(np.nanargmin(scores))
        self._next = engine + 1
        return Placement(engine, scores, reasons, "next in turn")
