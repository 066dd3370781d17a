"""Engines in turn."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.view import FleetView, RequestView


@dataclass
class RoundRobin:
    """Takes the next eligible engine after the last one chosen. Its only state is that position."""

    _next: int = field(default=0, init=False, repr=False)

    name: ClassVar[str] = "round-robin"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The next eligible engine; scores are places in the turn."""
        turn = ((np.arange(len(fleet)) - self._next) % max(len(fleet), 1)).astype(np.float64)
        placement = choose(request, fleet, turn, lambda _: "next in turn")
        if placement.found:
            self._next = placement.engine + 1
        return placement
