"""The benchmark of planning runs on a table that stays as full as it was. Times are for a quiet machine."""

import pytest

from paceline_core.batch.planning import decide
from paceline_core.batch.registry import make_policy
from paceline_core.batch.state import RunState
from paceline_lab.bench.scheduler import SchedulerPlan, World, measure_planning

PLAN = SchedulerPlan(live=120, batch=8, rounds=6, policies=("gmax", "fcfs"))


def test_all_figures_come_out():
    told = []
    result = measure_planning(PLAN, told.append)
    assert list(result["policies"]) == ["gmax", "fcfs"]
    for figures in result["policies"].values():
        assert 0 < figures["view_ms_p50"] < figures["plan_ms_p50"] <= figures["plan_ms_p99"]
        assert figures["valid_for_steps_p50"] >= 1
    assert 100 < result["bytes_per_row"] < result["bytes_per_live_request"] < 5_000
    assert len(told) == 2


def test_the_table_moves_and_stays_full():
    world = World(PLAN)
    world.fill()
    policy = make_policy("gmax")
    for _ in range(30):
        view = world.view()
        world.carry_out(view, decide(policy, view, world.now_ms, 64))
    view = world.view()
    assert len(view) == PLAN.live
    assert (view.state == RunState.RUNNING).sum() <= PLAN.batch
    assert view.generated.sum() > 30
    assert (view.prefill_left()[view.state == RunState.RUNNING] == 0).all()
    assert world.step == world.planned_step + 1 == 30


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="unknown batch policy 'magic'"):
        measure_planning(SchedulerPlan(live=4, rounds=1, policies=("magic",)), print)
