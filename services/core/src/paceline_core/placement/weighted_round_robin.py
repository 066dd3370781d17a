"""Engines in turn, fast ones more often."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.view import FleetView, Floats, RequestView


@dataclass
class WeightedRoundRobin:
    """Stride scheduling: every choice moves an engine on by 1/speed, and the one least far on is next.

    Its only state is how far each engine is. A new engine starts where the least far one stands.
    """

    _passes: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    name: ClassVar[str] = "weighted-round-robin"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The engine least far on; scores are how far each would be after this request."""
        new = len(fleet) - len(self._passes)
        if new > 0:
            start = self._passes.min() if len(self._passes) else 0.0
            self._passes = np.concatenate([self._passes, np.full(new, start)])
        scores = self._passes[: len(fleet)] + 1.0 / fleet.speed
        placement = choose(
            request, fleet, scores, lambda i: f"next in turn at {fleet.speed[i]:.2f} of the mean speed"
        )
        if placement.found:
            self._passes[placement.engine] = scores[placement.engine]
        return placement
