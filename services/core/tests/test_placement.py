"""Every placement policy keeps the same promises; then what each one is for."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_core.placement.policy import NONE
from paceline_core.placement.registry import POLICIES, make_policy
from paceline_core.placement.view import StepCosts

_here = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("placement_fleets", _here / "placement_fleets.py")
assert _spec is not None
fleets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fleets)  # type: ignore[union-attr]
fleet, request_view = fleets.fleet, fleets.request

every_policy = pytest.mark.parametrize("name", sorted(POLICIES))


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


@every_policy
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


def test_weighted_least_request_counts_requests_on_slow_engines_as_more():
    view = fleet(2, running=[2, 1], speed_factor=[1, 4])
    assert make_policy("least-request").place(request_view(), view, 0.0).engine == 1
    assert make_policy("least-request", {"weighted": True}).place(request_view(), view, 0.0).engine == 0


def test_least_predicted_prefers_the_faster_engine_until_its_backlog_costs_more():
    costs = fleet(2).costs
    speed = np.array([1.0, 3.0])
    scaled = StepCosts(*(getattr(costs, f) * speed for f in StepCosts.__slots__))
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
