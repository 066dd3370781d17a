"""The engine that is through with its work first."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.view import FleetView, Floats, RequestView


@dataclass(frozen=True)
class LeastLoad:
    """Takes the engine whose work is drained first, with credit for what is in flight."""

    weighted: bool = True
    """False: work is counted in tokens, speeds unknown."""

    name: ClassVar[str] = "least-load"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: ms until the work is drained (unweighted: its tokens)."""
        if self.weighted:
            drain = drain_ms(fleet)
            return choose(request, fleet, drain, lambda i: f"drained in {drain[i]:.0f} ms")
        tokens = (
            fleet.queued_prefill_tokens + fleet.pending_prefill_tokens
            + fleet.expected_output_tokens + fleet.pending_output_tokens
        )  # fmt: skip
        return choose(request, fleet, tokens, lambda i: f"{tokens[i]:.0f} tokens of work")


def drain_ms(fleet: FleetView) -> Floats:
    """float64[E]: time to do all work that is there or on its way, were nothing to follow."""
    live = fleet.live_requests
    batch = np.clip(live, 1.0, fleet.slots)
    resident = np.maximum(fleet.running + fleet.paused, 1.0)
    step_ms = fleet.costs.decode_ms(batch, fleet.kv_used_tokens / resident * batch)
    prefill = (fleet.queued_prefill_tokens + fleet.pending_prefill_tokens) * fleet.costs.d_ms
    return np.asarray(
        prefill + (fleet.expected_output_tokens + fleet.pending_output_tokens) / batch * step_ms
    )
