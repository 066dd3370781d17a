"""In the style of PolyServe: the most loaded engine that still attains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.prediction import predict
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class Polyserve:
    """Fills engines up: the highest load among those where the request is predicted to be in time with `slack` to
    spare, so that others stay free; where none is, the smallest predicted time. Its bins of TPOT tiers and its scaling
    of the fleet are left out."""

    slack: float = 0.8
    """Share of the time left that may be used."""

    name: ClassVar[str] = "polyserve-like"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def __post_init__(self) -> None:
        if not 0 < self.slack <= 1:
            raise ValueError(f"slack must be in (0, 1], got {self.slack:g}")

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: free share of the batch where it attains; engines that do not follow, by predicted time."""
        times = predict(request, fleet)
        attains = times.last_token_ms <= self.slack * request.left_ms
        if np.isfinite(request.first_left_ms):
            attains = (times.first_token_ms <= self.slack * request.first_left_ms) & (
                times.step_ms <= request.slo.tbt_ms
            )
        if not np.isfinite(request.left_ms) and not np.isfinite(request.first_left_ms):
            attains = np.zeros(len(fleet), dtype=np.bool_)
        load = fleet.live_requests / fleet.slots
        scores = np.where(attains, -np.minimum(load, 1e6), times.last_token_ms)
        return choose(
            request,
            fleet,
            scores,
            lambda i: f"load {load[i]:.2f}, last token in {times.last_token_ms[i]:.0f} ms",
        )
