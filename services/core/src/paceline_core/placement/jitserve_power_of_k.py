"""JITServe's rule for replicas, as far as placement can state it."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from paceline_core.placement.chance import sample, uniform
from paceline_core.placement.policy import EstimateUse, Placement, choose, eligible
from paceline_core.placement.prediction import predict
from paceline_core.placement.view import FleetView, RequestView


@dataclass
class JitservePowerOfK:
    """The best of K engines drawn by lot, by predicted completion.

    The paper queues a copy of the request on each of K sampled replicas, with a priority of that replica, and the
    first one to pick it deletes the others. A placement names one engine, so no copies are made here, nor by the
    router: the engine that would pick the request first is predicted instead. With good predictions the two agree;
    where the prediction is wrong, copies would do better than this.
    """

    k: int = 2
    weighted: bool = False
    """True: fast engines are drawn more often."""
    seed: int = 0
    _calls: int = field(default=0, init=False, repr=False)

    name: ClassVar[str] = "jitserve-power-of-k"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: predicted time to the last token on the engines drawn, else infinite."""
        may, _ = eligible(request, fleet)
        lots = uniform(self.seed, request.request_id, self._calls, len(fleet))
        self._calls += 1
        drawn = sample(lots, may, self.k, fleet.speed if self.weighted else None)
        scores = np.where(drawn, predict(request, fleet).last_token_ms, np.inf)
        return choose(
            request, fleet, scores, lambda i: f"last token in {scores[i]:.0f} ms, best of {drawn.sum()} drawn"
        )
