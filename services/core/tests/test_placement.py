"""Every placement policy keeps the same promises; then what each one is for."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.placement.policy import NONE
from paceline_core.placement.registry import POLICIES, make_policy
from paceline_core.placement.view import StepCosts
from paceline_core.slo import Slo, SloClass

_here = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("placement_fleets", _here / "placement_fleets.py")
assert _spec is not None
fleets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fleets)  # type: ignore[union-attr]
fleet, request_view = fleets.fleet, fleets.request

every_policy = pytest.mark.parametrize("name", sorted(POLICIES))

UNAWARE_OF_BURSTS = {
    "random": "it looks at nothing",
    "power-of-two": "two engines are drawn, not the least loaded of all",
    "jitserve-power-of-k": "the same",
    "lowest-tpm": "only completed calls count",
    "goodserve": "q is what was observed, and nothing has been",
    "goodserve-no-migration": "the same",
    "oracle-goodserve": "the same",
}
"""Policies for which a burst may herd, by their nature."""


@st.composite
def mixed_fleets(draw: st.DrawFn):
    count = draw(st.integers(1, 8))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    counts = st.lists(st.integers(0, 50), min_size=count, max_size=count)
    return fleet(
        count,
        up=np.array(draw(flags)),
        draining=np.array(draw(flags)),
        stale=np.array(draw(flags)),
        running=draw(counts),
        queued=draw(counts),
        pending_requests=draw(counts),
        queued_prefill_tokens=draw(counts),
        expected_output_tokens=draw(counts),
        models=tuple(draw(st.lists(st.sampled_from(["m", "other"]), min_size=count, max_size=count))),
    )


@every_policy
@settings(max_examples=8, deadline=None)
@given(view=mixed_fleets(), data=st.data())
def test_chooses_only_engines_that_may_take_it(name, view, data):
    excluded = frozenset(data.draw(st.sets(st.sampled_from(view.incarnations))))
    placement = make_policy(name).place(request_view(excluded=excluded), view, 0.0)
    may = [
        view.up[i] and not view.draining[i] and not view.stale[i] and view.models[i] == "m"
        and view.incarnations[i] not in excluded
        for i in range(len(view))
    ]  # fmt: skip
    assert placement.found == any(may)
    assert [not reason for reason in placement.excluded] == [bool(x) for x in may]
    assert placement.scores.shape == (len(view),)
    assert np.isnan(placement.scores).tolist() == [not x for x in may]
    if placement.found:
        assert may[placement.engine]
        assert placement.scores[placement.engine] == np.nanmin(placement.scores)
        assert placement.reason
    else:
        assert placement.engine == NONE


@every_policy
@settings(max_examples=8, deadline=None)
@given(view=mixed_fleets())
def test_equal_calls_in_equal_order_give_equal_answers(name, view):
    one, two = make_policy(name), make_policy(name)
    for _ in range(3):
        a, b = one.place(request_view(), view, 0.0), two.place(request_view(), view, 0.0)
        assert (a.engine, a.reason) == (b.engine, b.reason)
        assert np.array_equal(a.scores, b.scores, equal_nan=True)


@every_policy
def test_an_empty_fleet_takes_nothing(name):
    placement = make_policy(name).place(request_view(), fleet(0), 0.0)
    assert not placement.found
    assert "empty" in placement.reason


@every_policy
def test_a_prompt_far_over_the_context_goes_where_it_fits(name):
    view = fleet(2, max_context_tokens=[512, 8192])
    assert make_policy(name).place(request_view(prompt_tokens=2000), view, 0.0).engine == 1


@pytest.mark.parametrize("name", sorted(set(POLICIES) - set(UNAWARE_OF_BURSTS)))
def test_the_in_flight_ledger_spreads_a_burst(name):
    policy, view, taken = make_policy(name), fleet(4), []
    for _ in range(8):
        placement = policy.place(request_view(), view, 0.0)
        taken.append(placement.engine)
        pending = view.pending_requests.copy()
        pending[placement.engine] += 1
        prefill = pending * 100
        view = replace(
            view, pending_requests=pending, pending_prefill_tokens=prefill, pending_output_tokens=prefill
        )
    assert sorted(taken) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_round_robin_goes_around_and_skips_the_drained():
    policy, view = make_policy("round-robin"), fleet(3, draining=np.array([False, True, False]))
    assert [policy.place(request_view(), view, 0.0).engine for _ in range(4)] == [0, 2, 0, 2]


def slower(count, *factors):
    costs = fleet(count).costs
    return StepCosts(*(getattr(costs, f) * np.array(factors, dtype=float) for f in StepCosts.__slots__))


def test_weighted_least_request_counts_requests_on_slow_engines_as_more():
    view = fleet(2, running=[2, 1], costs=slower(2, 1, 4))
    assert make_policy("least-request").place(request_view(), view, 0.0).engine == 1
    assert make_policy("least-request", {"weighted": True}).place(request_view(), view, 0.0).engine == 0
    assert make_policy("weighted-least-request").place(request_view(), view, 0.0).engine == 0


@pytest.mark.parametrize("name", ["random", "weighted-round-robin"])
def test_speed_weights_share_the_requests_by_speed(name):
    policy = make_policy(name, {"weighted": True} if name == "random" else {})
    view, taken = fleet(2, costs=slower(2, 1, 3)), np.zeros(2)
    for k in range(400):
        taken[policy.place(request_view(request_id=f"r{k}"), view, 0.0).engine] += 1
    assert taken[0] / taken[1] == pytest.approx(3.0, rel=0.25)


def test_random_depends_on_the_request_and_the_seed_alone():
    engines = [
        make_policy("random", {"seed": seed}).place(request_view(request_id=f"r{k}"), fleet(16), 0.0).engine
        for seed in (1, 2)
        for k in range(64)
    ]
    again = [
        make_policy("random", {"seed": 1}).place(request_view(request_id=f"r{k}"), fleet(16), 5.0).engine
        for k in range(64)
    ]
    assert engines[:64] == again
    assert engines[:64] != engines[64:]
    assert len(set(again)) > 8


def test_the_prefix_draws_until_the_balance_tips():
    near = {"cached_tokens": np.array([0.0, 90.0, 0.0])}
    for name in ("cache-aware", "preble"):
        assert make_policy(name).place(request_view(**near), fleet(3), 0.0).engine == 1
        full = fleet(3, running=[0, 90, 0], expected_output_tokens=[0, 90e3, 0])
        assert make_policy(name).place(request_view(**near), full, 0.0).engine != 1


def deadline(e2e_ms, **fields):
    return request_view(slo=Slo(SloClass.DEADLINE, e2e_ms=e2e_ms), **fields)


def test_packing_policies_fill_up_and_slack_policies_spread_out():
    view = fleet(2, running=[3, 0], costs=slower(2, 1, 1.0))
    for name in ("polyserve-like", "llm-d"):
        assert make_policy(name).place(deadline(60_000.0), view, 0.0).engine == 0, name
    assert make_policy("aibrix-slo").place(deadline(60_000.0), view, 0.0).engine == 1


def test_goodserve_takes_the_least_capable_engine_that_is_in_time():
    view = fleet(3, costs=slower(3, 1, 2, 8))
    policy = make_policy("goodserve")
    fast, middle, slow = (
        policy.place(deadline(ms, max_tokens=50), view, 0.0).engine for ms in (50, 400, 60_000)
    )
    assert (fast, middle, slow) == (0, 1, 2)


def test_least_predicted_prefers_the_faster_engine_until_its_backlog_costs_more():
    scaled = slower(2, 1, 3)
    policy = make_policy("least-predicted")
    assert policy.place(request_view(), fleet(2, costs=scaled), 0.0).engine == 0
    busy = fleet(2, costs=scaled, running=[64, 0], expected_output_tokens=[64 * 400, 0])
    assert policy.place(request_view(), busy, 0.0).engine == 1


def test_least_predicted_distrusts_old_reports():
    policy = make_policy("least-predicted")
    assert policy.place(request_view(), fleet(2, load_age_ms=[4000, 0]), 0.0).engine == 1


def test_a_longer_answer_is_predicted_to_take_longer():
    policy, view = make_policy("least-predicted"), fleet(1)
    times = [policy.place(request_view(max_tokens=n), view, 0.0).predicted_ms for n in (10, 100, 1000)]
    assert times == sorted(times)
    assert times[0] < times[2]


def test_unknown_names_and_parameters_are_refused():
    with pytest.raises(ValueError, match="least-predicted"):
        make_policy("fastest")
    with pytest.raises(ValueError, match="round-robin"):
        make_policy("round-robin", {"speed": 1})
    with pytest.raises(ValueError, match="of type float"):
        make_policy("goodserve", {"beta": "tight"})
