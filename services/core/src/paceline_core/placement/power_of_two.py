"""The better of a few engines drawn by lot."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from paceline_core.placement.chance import sample, uniform
from paceline_core.placement.policy import EstimateUse, Placement, choose, eligible
from paceline_core.placement.view import FleetView, RequestView


@dataclass
class PowerOfTwo:
    """Of `choices` engines drawn by lot, the one with the fewest live requests."""

    choices: int = 2
    weighted: bool = False
    """True: fast engines are drawn more often, and requests on a slow engine count more."""
    seed: int = 0
    _calls: int = field(default=0, init=False, repr=False)

    name: ClassVar[str] = "power-of-two"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def __post_init__(self) -> None:
        if self.choices < 1:
            raise ValueError(f"choices must be at least 1, got {self.choices}")

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: live requests (weighted: with this one, over the speed) of the engines drawn, else infinite."""
        may, _ = eligible(request, fleet)
        drawn = sample(
            uniform(self.seed, request.request_id, self._calls, len(fleet)),
            may,
            self.choices,
            fleet.speed if self.weighted else None,
        )
        self._calls += 1
        live = fleet.live_requests
        load = (live + 1) / fleet.speed if self.weighted else live
        scores = np.where(drawn, load, np.inf)
        return choose(
            request, fleet, scores, lambda i: f"{live[i]:.0f} live requests, of {drawn.sum()} drawn"
        )
