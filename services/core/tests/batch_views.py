"""Views of live requests for tests of batch policies."""

import numpy as np

from paceline_core import lengths
from paceline_core.batch.estimates import LengthEstimates
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, Capacity
from paceline_core.engine_model import EngineModel
from paceline_core.slo import SloClass


def estimates_of(cdf, rows, max_tokens):
    """Estimates of which `rows` [N] hold the CDFs [N, K] of requests that write at most `max_tokens` [N]."""
    made = LengthEstimates(int(max(rows, default=0)) + 1)
    if len(rows):
        made.put(np.asarray(rows), cdf, np.asarray(max_tokens))
    return made


CAPACITY = Capacity(
    max_batch=4, max_resident=8, kv_tokens=4_000, max_context_tokens=1_024, prefill_chunk_tokens=64
)
MODEL = EngineModel(a_ms=10, b_ms=1, c_ms=0.001, a1_ms=8, p0_ms=2, d_ms=0.5, e_ms=0.0001)
NOW_MS = 100_000.0


def make_view(seed: int, size: int, capacity: Capacity = CAPACITY) -> BatchView:
    """A table of any shape: all classes and states, tied arrivals, used-up credit."""
    rng = np.random.default_rng(seed)
    slo_class = rng.integers(1, 5, size).astype(np.int8)
    latency = slo_class == SloClass.LATENCY
    budgeted = (slo_class == SloClass.DEADLINE) | (slo_class == SloClass.TASK)
    prompt = rng.integers(1, 600, size)
    generated = rng.integers(0, 200, size) * rng.integers(0, 2, size)
    state = np.where(generated > 0, rng.choice([4, 5, 6], size), 3).astype(np.int8)
    context = prompt + np.maximum(generated - 1, 0)
    kv = np.where(state == RunState.EVICTED, 0, np.where(generated > 0, context, 0))
    row_id = rng.permutation(size + 3)[:size]
    max_tokens = generated + rng.integers(1, 300, size)
    table = rng.random((size, lengths.K))
    drops = rng.random(size) < 0.5
    return BatchView(
        row_id=row_id,
        slo_class=slo_class,
        arrival_ms=NOW_MS - rng.integers(0, 50, size) * 100.0,
        ttft_ms=np.where(latency, 500.0, 0.0),
        tbt_ms=np.where(latency, 50.0, 0.0),
        e2e_ms=np.where(budgeted, rng.integers(1, 40, size) * 500.0, 0.0),
        call_due_ms=np.where(slo_class == SloClass.TASK, NOW_MS + 1_000, np.inf),
        task_due_ms=np.where(slo_class == SloClass.TASK, NOW_MS + 5_000, np.inf),
        task_rest_tokens=np.where(slo_class == SloClass.TASK, rng.integers(0, 500, size), 0.0),
        last_token_ms=np.where(generated > 0, NOW_MS - rng.integers(0, 2_000, size), 0.0),
        late_tokens=np.where(latency, rng.integers(0, 2, size) * np.minimum(generated, 3), 0),
        tenant_lag_tokens=rng.integers(-1_000, 1_000, size).astype(np.float64),
        drops=drops,
        finishes=~drops & (rng.random(size) < 0.5),
        prompt_tokens=prompt,
        kv_tokens=kv,
        cached_tokens=np.zeros(size, dtype=np.int64),
        generated=generated,
        max_tokens=max_tokens,
        token_limit=np.where(rng.random(size) < 0.2, generated, 0),
        state=state,
        tenant=rng.integers(0, 3, size).astype(np.int32),
        task=np.where(slo_class == SloClass.TASK, 0, -1).astype(np.int32),
        priority=rng.integers(-1, 2, size).astype(np.int32),
        lengths=estimates_of(lengths.cdf_from_probabilities(table), row_id, max_tokens),
        capacity=capacity,
        model=MODEL,
    )
