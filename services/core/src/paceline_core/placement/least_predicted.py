"""The engine where the answer is predicted to be complete first."""

from dataclasses import dataclass

import numpy as np

from paceline_core.placement.policy import Placement, eligible, lowest, nothing_eligible
from paceline_core.placement.view import FleetView, Floats, RequestView


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted times of one request on every engine, milliseconds from now, float64[E] each."""

    start_ms: Floats
    first_token_ms: Floats
    last_token_ms: Floats


def predict(request: RequestView, fleet: FleetView, age_scale_ms: float) -> Prediction:
    """Completion times from the step-time model, the reported backlog, and the in-flight ledger.

    Before it starts: the prefill backlog, and for engines with a full batch the time until enough slots are
    free, at the mean remaining length. Then its own prefill, and its remaining mean length at the step time
    of the batch it joins. Reports grow unreliable with age: the times grow by age / `age_scale_ms`.
    """
    live = fleet.live_requests
    slots = np.maximum(fleet.max_batch, 1)
    batch = np.minimum(live + 1, slots)
    own_context = request.prompt_tokens + (request.replayed_tokens + request.mean_tokens) / 2
    resident = np.maximum(fleet.running + fleet.paused, 1)
    context = fleet.kv_used_tokens / resident * (batch - 1) + own_context
    step_ms = fleet.costs.decode_ms(batch, context)

    backlog = fleet.queued_prefill_tokens + fleet.pending_prefill_tokens
    owed = fleet.expected_output_tokens + fleet.pending_output_tokens
    mean_owed = owed / np.maximum(live, 1)
    ahead = np.maximum(live + 1 - slots, 0)
    start_ms = fleet.costs.d_ms * backlog + ahead * mean_owed * step_ms / slots
    prompt = np.full(len(fleet), float(request.prompt_tokens + request.replayed_tokens))
    first_ms = start_ms + fleet.costs.prefill_ms(prompt) + step_ms
    remaining = max(request.mean_tokens - request.replayed_tokens - 1, 0.0)
    last_ms = first_ms + remaining * step_ms
    doubt = 1 + fleet.load_age_ms / age_scale_ms
    return Prediction(start_ms * doubt, first_ms * doubt, last_ms * doubt)


class LeastPredicted:
    """Takes the engine with the smallest predicted completion time.

    `age_scale_ms`: age of a load report at which its predictions count double.
    """

    name = "least-predicted"

    def __init__(self, age_scale_ms: float = 5000.0) -> None:
        if not age_scale_ms > 0:
            raise ValueError(f"age_scale_ms must be greater than 0, got {age_scale_ms:g}")
        self._age_scale_ms = age_scale_ms

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The engine with the smallest predicted time to the last token; scores: those times, ms from now."""
        may, reasons = eligible(request, fleet)
        if not may.any():
            return nothing_eligible(fleet, reasons)
        predicted = predict(request, fleet, self._age_scale_ms)
        engine, shown = lowest(predicted.last_token_ms, may)
        reason = f"first token in {predicted.first_token_ms[engine]:.0f} ms, last in {shown[engine]:.0f} ms"
        return Placement(engine, shown, reasons, reason, predicted_ms=float(shown[engine]))
