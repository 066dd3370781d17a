"""The engine where the answer is predicted to be complete first."""

from dataclasses import dataclass
from typing import ClassVar

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.prediction import AGE_SCALE_MS, predict
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class LeastPredicted:
    """Takes the engine with the smallest predicted completion time."""

    age_scale_ms: float = AGE_SCALE_MS
    """Age of a load report at which its predictions count double."""

    name: ClassVar[str] = "least-predicted"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def __post_init__(self) -> None:
        if not self.age_scale_ms > 0:
            raise ValueError(f"age_scale_ms must be greater than 0, got {self.age_scale_ms:g}")

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: predicted times to the last token, ms from now."""
        predicted = predict(request, fleet, self.age_scale_ms)
        last, first = predicted.last_token_ms, predicted.first_token_ms
        placement = choose(
            request, fleet, last, lambda i: f"first token in {first[i]:.0f} ms, last in {last[i]:.0f} ms"
        )
        return _with_time(placement)


def _with_time(placement: Placement) -> Placement:
    if not placement.found:
        return placement
    chosen = float(placement.scores[placement.engine])
    return Placement(placement.engine, placement.scores, placement.excluded, placement.reason, chosen)
