"""Predicted times of one request on every engine: the same for every policy that uses speeds."""

from dataclasses import dataclass

import numpy as np

from paceline_core.placement.view import FleetView, Floats, RequestView

AGE_SCALE_MS = 5000.0
"""Age of a load report at which its predictions count double."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted times of one request on every engine, milliseconds from now, float64[E] each."""

    start_ms: Floats
    """Until its own prefill begins."""
    prefill_ms: Floats
    """Its own prefill."""
    step_ms: Floats
    """One decode step of the batch that it joins."""
    first_token_ms: Floats
    last_token_ms: Floats


def predict(
    request: RequestView,
    fleet: FleetView,
    age_scale_ms: float = AGE_SCALE_MS,
    remaining_tokens: float | None = None,
) -> Prediction:
    """Completion times from the step-time model, the reported backlog, and the in-flight ledger.

    Before it starts: the prefill backlog, and for engines with a full batch the time until enough slots are
    free, at the mean remaining length. Then its own prefill, and its remaining length (`remaining_tokens`; its mean
    where that is None) at the step time of the batch it joins. Reports grow unreliable with age: the times grow by
    age / `age_scale_ms`.
    """
    remaining = request.remaining_tokens if remaining_tokens is None else remaining_tokens
    costs, slots, live = fleet.costs, fleet.slots, fleet.live_requests
    joined = live + 1.0
    batch = np.minimum(joined, slots)
    resident = np.maximum(fleet.running + fleet.paused, 1.0)
    context = fleet.kv_used_tokens / resident * (batch - 1.0) + (request.input_tokens + remaining / 2)
    step_ms = costs.decode_ms(batch, context) * fleet.slowdown

    backlog = fleet.queued_prefill_tokens + fleet.pending_prefill_tokens
    start_ms = costs.d_ms * backlog
    ahead = joined - slots
    if (ahead > 0).any():
        owed = fleet.expected_output_tokens + fleet.pending_output_tokens
        start_ms = start_ms + np.maximum(ahead, 0.0) * (owed / np.maximum(live, 1.0)) * step_ms / slots
    prefill_ms = costs.prefill_ms(request.uncached_tokens(len(fleet)))
    first_ms = start_ms + prefill_ms + step_ms
    last_ms = first_ms + (remaining - 1.0) * step_ms
    doubt = 1.0 + fleet.load_age_ms / age_scale_ms
    return Prediction(
        start_ms * doubt, prefill_ms * doubt, step_ms * doubt, first_ms * doubt, last_ms * doubt
    )
