"""Any engine."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from paceline_core.placement.chance import uniform
from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.view import FleetView, RequestView


@dataclass
class Random:
    """Takes an engine by lot. The lot is drawn from the seed and the request's id."""

    weighted: bool = False
    """True: fast engines are drawn more often, in proportion to their speed."""
    seed: int = 0
    _calls: int = field(default=0, init=False, repr=False)

    name: ClassVar[str] = "random"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The winner of an exponential race; scores are the racing times."""
        race = -np.log(uniform(self.seed, request.request_id, self._calls, len(fleet)))
        self._calls += 1
        scores = race / fleet.speed if self.weighted else race
        return choose(request, fleet, scores, lambda _: "drawn by lot")
