"""`margin`: fastest when idle, just enough when time is dear, considerate when full; and the moves of both policies."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core import lengths
from paceline_core.engine_model import EngineModel
from paceline_core.placement.fleet_table import EngineLimits, FleetTable
from paceline_core.placement.forward import look_ahead
from paceline_core.placement.meeting import LengthChance
from paceline_core.placement.prices import Prices
from paceline_core.placement.registry import make_policy
from paceline_core.placement.view import RequestView
from paceline_core.slo import Slo, SloClass

quick = settings(max_examples=25, deadline=None)
EXACT = np.concatenate([np.zeros(lengths.K - 1), [1.0]])
"""A length that its limit decides."""


def asks(tokens, e2e_ms, **fields):
    return RequestView(
        "m", fields.pop("prompt_tokens", 50), tokens, EXACT, Slo(SloClass.DEADLINE, e2e_ms=e2e_ms), **fields
    )


def fleet_of(*factors, max_batch=8):
    """Engines whose step takes factor * (10 + batch) ms and whose prefill takes 0.1 * factor ms a token."""
    table = FleetTable()
    for row, factor in enumerate(factors):
        table.join(f"e{row}")
        table.came_up(row, row + 1, "m", EngineLimits(max_batch, 100_000), 0.0)
        table.costs(row, EngineModel(*(factor * x for x in (10.0, 1.0, 0.0, 0.0, 0.0, 0.1, 0.0))))
    return table


def fill(table, row, requests, now_ms=0.0, generated=1, first_key=1):
    """Put running requests on an engine, as a report would tell."""
    keys = range(first_key, first_key + len(requests))
    for key, request in zip(keys, requests, strict=True):
        table.placed(row, key, request, now_ms)
        table.seen(key)
    table.progressed(row, keys, [generated] * len(requests), now_ms)
    load = {"running": len(requests), "expected_output_tokens": float(sum(r.max_tokens for r in requests))}
    table.report(row, {**load, "kv_used_tokens": 100.0 * len(requests)}, now_ms)


@quick
@given(
    st.lists(st.floats(0.5, 4.0), min_size=1, max_size=8),
    st.integers(1, 500),
    st.floats(1.0, 20.0),
)
def test_on_an_idle_fleet_it_is_fastest_wins(factors, tokens, looseness):
    view = fleet_of(*factors).view(0.0)
    request = asks(tokens, 1.5 * looseness * max(factors) * (5 + 11 * tokens) + 50)
    chosen = make_policy("margin").place(request, view, 0.0)
    assert chosen.engine == make_policy("least-predicted").place(request, view, 0.0).engine
    assert chosen.p_meet > 0.95


def test_when_time_is_dear_a_loose_request_takes_the_weak_engine_and_a_tight_one_the_strong():
    view = fleet_of(1, 3).view(0.0)
    view = replace(view, prices=Prices(np.array([2e-4, 1e-6]), np.array([2.25, 6.75])))
    loose, tight = asks(200, 60_000.0), asks(200, 3_000.0)
    policy = make_policy("margin")
    assert policy.place(loose, view, 0.0).engine == 1
    assert policy.place(tight, view, 0.0).engine == 0


def test_it_spares_residents_that_a_newcomer_would_make_late():
    table = fleet_of(1, 1.3)
    # Seven that need 99 more tokens in a hair more than 99 steps of seven: one more and they are late.
    fill(table, 0, [asks(100, 1_720.0)] * 7)
    fill(table, 1, [asks(100, 60_000.0)] * 7, first_key=20)
    considerate = make_policy("margin").place(asks(200, 60_000.0), table.view(0.0), 0.0)
    selfish = make_policy("margin", {"resident_weight": 0.0}).place(asks(200, 60_000.0), table.view(0.0), 0.0)
    assert (considerate.engine, selfish.engine) == (1, 0)


def test_without_hope_it_goes_where_it_takes_the_least():
    table = fleet_of(1, 4)
    view = replace(table.view(0.0), prices=Prices(np.array([2e-4, 1e-6]), np.array([2.25, 9.0])))
    placed = make_policy("margin").place(asks(1_000, 1_000.0), view, 0.0)
    assert placed.engine == 1
    assert placed.p_meet < 0.05


@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 60), st.integers(0, 2_000))
def test_the_forward_model_is_the_step_by_step_run(residents, own, budget_ms):
    """Every sequence one token a step, gone at its end, steps of 10 + batch: the newcomer's tokens and its end."""
    table = fleet_of(1)
    fill(table, 0, [asks(n + 1, 1e6, prompt_tokens=1) for n in residents])
    request = asks(own, float(budget_ms) + 1e-6, prompt_tokens=1)
    ahead = look_ahead(request, table.view(0.0), np.array([0]), 0.0, refill=0.0)
    clock, ends_ms, in_time, k = float(ahead.start_ms[0] + ahead.prefill_ms[0]), None, 0, 0
    while ends_ms is None or clock <= budget_ms:
        clock += 10.0 + 1.0 + sum(n > k for n in residents)
        k += 1
        in_time += clock <= budget_ms
        if k == own:
            ends_ms = clock
    assert ahead.last_ms[0] == pytest.approx(ends_ms, rel=0.02)
    assert np.floor(ahead.tokens[0] + 1e-6) == pytest.approx(in_time, abs=1.0 + 0.02 * in_time)


def test_chances_rise_with_time_and_end_at_the_limit():
    cdf = lengths.cdf_from_probabilities(np.full(lengths.K, 1 / lengths.K))[0]
    chance = LengthChance(RequestView("m", 10, 400, cdf, replayed_tokens=20))
    found = chance.within(np.arange(0, 800, dtype=float))
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0.0
    assert found[600:] == pytest.approx(1.0)


def at_risk(table, row=1, moves=0, e2e_ms=4_000.0):
    table.placed(row, 1, asks(200, e2e_ms), 0.0, moves)
    table.seen(1)
    table.progressed(row, [1], [60], 0.0)
    table.report(row, {"running": 1.0, "expected_output_tokens": 140.0, "kv_used_tokens": 110.0}, 0.0)
    return table


@pytest.mark.parametrize("name", ["margin", "goodserve"])
def test_a_request_at_risk_moves_to_the_engine_that_saves_it_and_is_then_left_alone(name):
    table = at_risk(fleet_of(1, 4))
    found = make_policy(name).rectify(table.view(0.0), 0.0)
    assert [(move.key, move.source, move.target) for move in found.moves] == [(1, 1, 0)]
    assert found.moves[0].p_move > found.moves[0].p_stay
    assert found.moves[0].gain > 0
    assert found.moves[0].reason
    table.residents.checked(found.checked)
    assert not make_policy(name).rectify(table.view(0.0), 0.0).moves


@pytest.mark.parametrize("name", ["margin", "goodserve"])
def test_nothing_moves_that_is_safe_or_where_moving_is_off(name):
    assert not make_policy(name).rectify(at_risk(fleet_of(1, 4), e2e_ms=1e5).view(0.0), 0.0).moves
    off = make_policy(name, {"every_tokens": 0})
    assert not off.rectify(at_risk(fleet_of(1, 4)).view(0.0), 0.0).moves


def test_goodserve_moves_to_stronger_engines_only():
    assert (
        not make_policy("goodserve")
        .rectify(at_risk(fleet_of(4, 1), row=1, e2e_ms=500.0).view(0.0), 0.0)
        .moves
    )


def test_margin_does_not_move_what_no_engine_saves_nor_what_moved_twice():
    policy = make_policy("margin")
    assert not policy.rectify(at_risk(fleet_of(1, 4), e2e_ms=200.0).view(0.0), 0.0).moves
    assert not policy.rectify(at_risk(fleet_of(1, 4), moves=2).view(0.0), 0.0).moves


def test_margin_keeps_to_one_move_from_and_to_an_engine():
    table = fleet_of(1, 4)
    fill(table, 1, [asks(200, 6_000.0)] * 3, generated=60)
    assert len(make_policy("margin").rectify(table.view(0.0), 0.0).moves) == 1
    assert len(make_policy("margin", {"moves_per_engine": 2}).rectify(table.view(0.0), 0.0).moves) == 2


def test_a_loose_request_leaves_a_dear_engine():
    table = at_risk(fleet_of(1, 2), row=0, e2e_ms=100_000.0)
    view = replace(table.view(0.0), prices=Prices(np.array([2e-3, 0.0]), np.array([2.25, 4.5])))
    (move,) = make_policy("margin").rectify(view, 0.0).moves
    assert (move.source, move.target) == (0, 1)
    assert move.p_move > 0.9
