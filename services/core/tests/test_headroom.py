"""Headroom curves, laxity and P(meet)."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core import lengths
from paceline_core.batch.laxity import laxity_ms, p_meet, step_now_ms
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, Capacity
from paceline_core.engine_model import EngineModel
from paceline_core.headroom import HORIZONS_MS, headroom, remaining_mean_tokens
from paceline_core.slo import SloClass


def _load():
    spec = importlib.util.spec_from_file_location("batch_views", Path(__file__).with_name("batch_views.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


estimates_of = _load().estimates_of
CAPACITY = Capacity(
    max_batch=4, max_resident=8, kv_tokens=10_000, max_context_tokens=4_096, prefill_chunk_tokens=64
)
MODEL = EngineModel(a_ms=10, b_ms=0, c_ms=0, a1_ms=10, p0_ms=0, d_ms=1, e_ms=0)
NOW_MS = 50_000.0


def make_view(rows, model=MODEL):
    """Rows of (class, budget_ms, remaining tokens, state); arrival is now, prompts of 100 tokens are prefilled."""
    n = len(rows)
    ends = np.zeros((max(n, 1), lengths.K))
    for i, (_, _, left, _) in enumerate(rows):
        ends[i, lengths.bin_of(left)] = 1.0
    ends[n == 0] = 1.0
    classes = np.asarray([r[0] for r in rows], dtype=np.int8)
    budget = np.asarray([r[1] for r in rows], dtype=np.float64)
    state = np.asarray([r[3] for r in rows], dtype=np.int8)
    latency = classes == SloClass.LATENCY
    prompt = np.full(n, 100)
    return BatchView(
        row_id=np.arange(n),
        slo_class=classes,
        arrival_ms=np.full(n, NOW_MS),
        ttft_ms=np.where(latency, budget, 0.0),
        tbt_ms=np.where(latency, 100.0, 0.0),
        e2e_ms=np.where(latency, 0.0, budget),
        call_due_ms=np.full(n, np.inf),
        prompt_tokens=prompt,
        kv_tokens=np.where(state == RunState.QUEUED, 0, prompt),
        cached_tokens=np.zeros(n, dtype=np.int64),
        generated=np.zeros(n, dtype=np.int64),
        max_tokens=np.asarray([r[2] for r in rows], dtype=np.int64),
        token_limit=np.zeros(n, dtype=np.int64),
        state=state,
        tenant=np.zeros(n, dtype=np.int32),
        task=np.full(n, -1, dtype=np.int32),
        priority=np.zeros(n, dtype=np.int32),
        task_due_ms=np.full(n, np.inf),
        task_rest_tokens=np.zeros(n),
        last_token_ms=np.zeros(n),
        late_tokens=np.zeros(n, dtype=np.int64),
        tenant_lag_tokens=np.zeros(n),
        drops=np.zeros(n, dtype=bool),
        finishes=np.zeros(n, dtype=bool),
        lengths=estimates_of(lengths.cdf_from_probabilities(ends)[:n], np.arange(n), [r[2] for r in rows]),
        capacity=CAPACITY,
        model=model,
    )


RUNNING, QUEUED = RunState.RUNNING, RunState.QUEUED


def test_an_empty_engine_is_all_free():
    curves = headroom(make_view([]), NOW_MS, np.empty(0))
    assert curves.free_decode_tokens == pytest.approx(HORIZONS_MS / 10 * 4)
    assert curves.free_prefill_tokens == pytest.approx(HORIZONS_MS)
    assert (curves.free_kv_tokens == 10_000).all()
    assert curves.start_delay_ms == 0
    assert curves.next_step_ms == 10


def test_a_deadline_owes_nothing_until_it_must():
    """100 tokens at 10 ms a step by 6 s: the first must be out at 5 s, and by 6 s all are owed."""
    view = make_view([(SloClass.DEADLINE, 6_000.0, 100, RUNNING)])
    curves = headroom(view, NOW_MS, np.asarray([100.0]))
    owed = HORIZONS_MS / 10 * 4 - curves.free_decode_tokens
    at = dict(zip(HORIZONS_MS.tolist(), owed.tolist(), strict=True))
    assert at[3_000.0] == pytest.approx(0)
    assert at[6_000.0] == pytest.approx(100)
    assert at[120_000.0] == pytest.approx(100)


def test_a_stream_owes_what_is_due_along_its_time_line():
    view = make_view([(SloClass.LATENCY, 400.0, 20, RUNNING)])
    curves = headroom(view, NOW_MS, np.asarray([20.0]))
    owed = HORIZONS_MS / 10 * 4 - curves.free_decode_tokens
    at = dict(zip(HORIZONS_MS.tolist(), owed.tolist(), strict=True))
    assert at[200.0] == pytest.approx(0)
    assert at[400.0] == pytest.approx(1)
    assert at[800.0] == pytest.approx(5)
    assert at[3_000.0] == pytest.approx(20)


def test_best_effort_is_owed_nothing_but_a_late_deadline_everything():
    best = headroom(make_view([(SloClass.BEST_EFFORT, 0.0, 50, RUNNING)]), NOW_MS, np.asarray([50.0]))
    assert best.free_decode_tokens == pytest.approx(HORIZONS_MS / 10 * 4)
    view = make_view([(SloClass.DEADLINE, 1.0, 30, RUNNING)])
    late = headroom(view, NOW_MS + 5_000, np.asarray([30.0]))
    assert HORIZONS_MS / 10 * 4 - late.free_decode_tokens == pytest.approx(30)


def test_queued_prompts_take_time_and_delay_the_next_one():
    view = make_view([(SloClass.BEST_EFFORT, 0.0, 10, QUEUED)] * 2)
    curves = headroom(view, NOW_MS, np.asarray([10.0, 10.0]))
    assert curves.start_delay_ms == pytest.approx(200)
    assert curves.free_prefill_tokens[0] == 0
    assert curves.free_prefill_tokens[-1] == pytest.approx(120_000 - 200)


def test_full_slots_delay_by_the_first_departure():
    view = make_view([(SloClass.BEST_EFFORT, 0.0, n, RUNNING) for n in (10, 20, 30, 40)])
    curves = headroom(view, NOW_MS, np.asarray([10.0, 20.0, 30.0, 40.0]))
    assert curves.start_delay_ms == pytest.approx(10 * 10 + 5)


def test_kv_comes_free_when_requests_leave():
    view = make_view([(SloClass.BEST_EFFORT, 0.0, 100, RUNNING)])
    curves = headroom(view, NOW_MS, np.asarray([100.0]))
    at = dict(zip(HORIZONS_MS.tolist(), curves.free_kv_tokens.tolist(), strict=True))
    assert at[800.0] == pytest.approx(10_000 - 100 - 80)
    assert at[1_500.0] == 10_000


rows = st.tuples(
    st.sampled_from(list(SloClass)),
    st.floats(1, 60_000),
    st.integers(1, 800),
    st.sampled_from([RUNNING, QUEUED, RunState.PAUSED]),
)


@given(st.lists(rows, max_size=20), st.floats(0, 30_000), rows)
@settings(max_examples=100, deadline=None)
def test_curves_are_sane_and_more_work_never_frees_anything(some, later, extra):
    few, more = make_view(some), make_view([*some, extra])
    one = headroom(few, NOW_MS + later, remaining_mean_tokens(few))
    two = headroom(more, NOW_MS + later, remaining_mean_tokens(more))
    for curve in (one.free_decode_tokens, one.free_prefill_tokens, one.free_kv_tokens):
        assert curve.shape == HORIZONS_MS.shape
        assert np.isfinite(curve).all()
        assert (curve >= 0).all()
    assert (two.free_decode_tokens <= one.free_decode_tokens + 1e-6).all()
    assert (two.free_prefill_tokens <= one.free_prefill_tokens + 1e-6).all()
    assert (two.free_kv_tokens <= one.free_kv_tokens + 1e-6).all()


def test_laxity_and_p_meet_agree_with_a_known_length():
    view = make_view(
        [
            (SloClass.DEADLINE, 1_500.0, 100, RUNNING),  # needs 1,000 ms
            (SloClass.DEADLINE, 300.0, 100, RUNNING),
            (SloClass.LATENCY, 50.0, 100, RUNNING),
            (SloClass.BEST_EFFORT, 0.0, 100, RUNNING),
        ]
    )
    assert step_now_ms(view) == 10
    laxity = laxity_ms(view, NOW_MS, np.full(4, 100.0))
    assert laxity[:3] == pytest.approx([500, -700, 40])
    assert laxity[3] == np.inf
    chance, _ = p_meet(view, NOW_MS)
    assert chance[[0, 2, 3]] == pytest.approx(1.0)
    assert chance[1] < 0.05
    late, _ = p_meet(view, NOW_MS + 60)
    assert late[2] == 0


def test_p_meet_falls_as_time_passes_and_prefill_counts():
    view = make_view([(SloClass.DEADLINE, 4_000.0, 500, QUEUED)])
    cdf = np.linspace(0, 1, lengths.K)[None, :] ** 0.5
    limit = np.asarray([40_000])
    spread = replace(view, lengths=estimates_of(cdf, [0], limit), max_tokens=limit)
    chances = [float(p_meet(spread, NOW_MS + t)[0][0]) for t in range(0, 4_400, 200)]
    assert chances == sorted(chances, reverse=True)
    assert 0 < chances[3] < 1
    assert chances[-1] == 0
    prefilled = replace(spread, kv_tokens=np.asarray([100]))
    assert p_meet(prefilled, NOW_MS)[0][0] > chances[0]
