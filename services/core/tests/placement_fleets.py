"""Fleets and requests for placement tests."""

from dataclasses import replace
from typing import Any

import numpy as np

from paceline_core import lengths
from paceline_core.placement.view import FleetView, RequestView, StepCosts


def fleet(count: int, **columns: Any) -> FleetView:
    """`count` idle, equal engines; `columns` replaces arrays (lists are taken as float64)."""

    def full(value: float) -> np.ndarray:
        return np.full(count, float(value))

    view = FleetView(
        engine_ids=tuple(f"e{i}" for i in range(count)),
        incarnations=tuple(100 + i for i in range(count)),
        models=("m",) * count,
        up=np.ones(count, dtype=bool),
        draining=np.zeros(count, dtype=bool),
        stale=np.zeros(count, dtype=bool),
        load_age_ms=full(0),
        queued=full(0),
        running=full(0),
        paused=full(0),
        pending_requests=full(0),
        pending_prefill_tokens=full(0),
        pending_output_tokens=full(0),
        queued_prefill_tokens=full(0),
        expected_output_tokens=full(0),
        kv_used_tokens=full(0),
        kv_capacity_tokens=full(65536),
        max_batch=full(16),
        max_context_tokens=full(4096),
        speed_factor=full(1),
        tokens_per_s=full(0),
        costs=StepCosts(full(4), full(0.5), full(0.001), full(0), full(1), full(0.2), full(0)),
    )
    cast = {k: np.asarray(v, dtype=np.float64) if isinstance(v, list) else v for k, v in columns.items()}
    return replace(view, **cast)


def request(**fields: Any) -> RequestView:
    """A request with a flat length distribution; `fields` replaces what differs."""
    cdf = lengths.cdf_from_probabilities(np.full(lengths.K, 1 / lengths.K))[0]
    base = RequestView(model="m", prompt_tokens=100, max_tokens=200, length_cdf=cdf)
    return replace(base, **fields)
