"""The engine that completed the fewest tokens in this minute."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class LowestTpm:
    """Takes the engine with the fewest tokens in the current minute's bucket, of completed calls only: calls under way
    are not seen, as in the gateways that have this rule."""

    weighted: bool = False
    """True: tokens count by the engine's speed."""

    name: ClassVar[str] = "lowest-tpm"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: tokens of the minute."""
        tokens = np.zeros(len(fleet)) if fleet.minute_tokens is None else fleet.minute_tokens
        scores = tokens / fleet.speed if self.weighted else tokens
        return choose(request, fleet, scores, lambda i: f"{tokens[i]:.0f} tokens completed in this minute")
