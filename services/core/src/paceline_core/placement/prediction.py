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
    found = fleet.joining
    doubt = fleet.load_age_ms * (1.0 / age_scale_ms) + 1.0
    step_ms = (found.step_ms + found.context_ms * (request.input_tokens + remaining / 2)) * doubt
    start_ms = found.start_ms * doubt
    prefill_ms = _prefill_ms(request, fleet) * doubt
    first_ms = start_ms + prefill_ms + step_ms
    return Prediction(start_ms, prefill_ms, step_ms, first_ms, first_ms + (remaining - 1.0) * step_ms)


def _prefill_ms(request: RequestView, fleet: FleetView) -> Floats:
    costs = fleet.costs
    if request.cached_tokens is not None:
        return costs.prefill_ms(request.uncached_tokens(len(fleet)))
    tokens = request.input_tokens  # the same everywhere: a number is cheaper than a column of it
    return np.asarray(costs.p0_ms + costs.d_ms * tokens + costs.e_ms * (tokens * tokens / 2))
