"""In the style of llm-d's predicted-latency scheduling: the least headroom that is still positive."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.prediction import predict
from paceline_core.placement.view import FleetView, Floats, RequestView


@dataclass(frozen=True)
class LlmD:
    """Packs: among engines whose predicted headroom (P90 length) is positive, the least; if there is none, the
    engine that misses by least. An engine where the tightest resident's TBT would break counts as without headroom.

    Written from its public description; there it has one latency model per GPU type, here the step-time model.
    """

    tbt_guard: bool = True

    name: ClassVar[str] = "llm-d"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: positive headroom, ms; engines without any follow, by how much they lack."""
        times = predict(
            request, fleet, remaining_tokens=max(request.p90_tokens - request.replayed_tokens, 1.0)
        )
        headroom = _headroom_ms(request, times.first_token_ms, times.step_ms, times.last_token_ms)
        if self.tbt_guard and fleet.residents is not None:
            broken = times.step_ms > fleet.residents.tightest_tbt_ms(len(fleet))
            headroom = np.where(broken, np.minimum(headroom, -times.step_ms), headroom)
        scores = np.where(headroom >= 0, headroom, 1e9 - headroom)
        return choose(request, fleet, scores, lambda i: f"headroom {headroom[i]:.0f} ms")


def _headroom_ms(request: RequestView, first: Floats, step: Floats, last: Floats) -> Floats:
    if np.isfinite(request.first_left_ms):
        return np.asarray(
            np.minimum(request.first_left_ms - first, (request.slo.tbt_ms - step) * request.remaining_tokens)
        )
    if np.isfinite(request.left_ms):
        return np.asarray(request.left_ms - last)
    return np.asarray(-last)
