"""What every batch policy owes: one suite over all names in the registry."""

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.batch.plan import STEP_SLACK, UNTIL_EVENT
from paceline_core.batch.pressure import fit
from paceline_core.batch.registry import POLICIES, make_policy
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView
from paceline_core.slo import SloClass


def _load():
    spec = importlib.util.spec_from_file_location("batch_views", Path(__file__).with_name("batch_views.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_views = _load()
CAPACITY, NOW_MS, make_view = _views.CAPACITY, _views.NOW_MS, _views.make_view
NOT_COLUMNS = ("lengths", "capacity", "model", "step", "planned_step")

views = st.builds(make_view, st.integers(0, 10_000), st.integers(0, 40))
every_policy = pytest.mark.parametrize("name", sorted(POLICIES))


@every_policy
@given(view=views)
@settings(max_examples=30, deadline=None)
def test_plan_is_sound_and_pure(name, view):
    policy = make_policy(name)
    before = {f: np.copy(getattr(view, f)) for f in BatchView.__slots__ if f not in NOT_COLUMNS}
    plan = policy.plan(view, NOW_MS)
    order = plan.order.tolist()
    assert len(set(order)) == len(order)
    assert all(0 <= row < len(view) for row in order)
    assert view.runnable()[plan.order].all()
    assert len(plan.scores) == len(plan.reasons) == len(order)
    assert not set(order) & set(plan.evict.tolist())
    assert not set(order) & set(plan.shed.tolist())
    untouched = (view.generated == 0) & (view.kv_tokens == 0)
    assert (view.drops | untouched)[plan.shed].all()
    assert 0 <= plan.max_batch <= view.capacity.max_batch
    assert plan.prefill_budget_tokens >= view.capacity.prefill_chunk_tokens
    assert 1 <= plan.valid_for_steps <= UNTIL_EVENT
    for name_, column in before.items():
        assert np.array_equal(column, getattr(view, name_)), f"{name_} was written to"
    again = policy.plan(view, NOW_MS)
    assert again.order.tolist() == order
    assert np.array_equal(again.scores, plan.scores)
    assert (again.prefill_budget_tokens, again.max_batch) == (plan.prefill_budget_tokens, plan.max_batch)
    fresh = make_policy(name).plan(view, NOW_MS)  # no memory: another instance says the same
    assert fresh.order.tolist() == order


@every_policy
@given(view=views, seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_order_of_rows_does_not_matter(name, view, seed):
    policy = make_policy(name)
    shuffle = np.random.default_rng(seed).permutation(len(view))
    columns = [f for f in BatchView.__slots__ if f not in NOT_COLUMNS]
    shuffled = replace(view, **{f: getattr(view, f)[shuffle] for f in columns})
    one, other = policy.plan(view, NOW_MS), policy.plan(shuffled, NOW_MS)
    assert view.row_id[one.order].tolist() == shuffled.row_id[other.order].tolist()


@every_policy
@given(
    view=views, at_step=st.integers(0, 200), steps=st.integers(1, 400), slow=st.floats(0.8, 0.8 * STEP_SLACK)
)
@settings(max_examples=40, deadline=None)
def test_a_plan_holds_as_long_as_it_says(name, view, at_step, steps, slow):
    """Without an event, decoding goes on at about the model's pace, and planning again gives the same list."""
    policy = make_policy(name)
    view = replace(view, step=at_step, planned_step=at_step - at_step % 7 - 1)
    plan = policy.plan(view, NOW_MS)
    steps = min(steps, plan.valid_for_steps - 1)
    if steps < 1:
        return
    batch = plan.order[: plan.max_batch or view.capacity.max_batch]
    moving = np.zeros(len(view), dtype=bool)
    moving[batch] = view.prefill_left()[batch] == 0  # the end of a prefill is an event
    room = np.where(view.token_limit > 0, view.token_limit, view.max_tokens) - view.generated
    steps = min(steps, int(room[moving].min()) - 1 if moving.any() else steps)
    if steps < 1:
        return
    overdue = view.arrival_ms + view.ttft_ms + view.generated * view.tbt_ms < NOW_MS
    came_late = moving & overdue & (view.slo_class == SloClass.LATENCY)
    stopped = (view.state == RunState.RUNNING) & ~moving
    state = np.where(stopped, RunState.PAUSED, np.where(moving, RunState.RUNNING, view.state))
    later = replace(
        view,
        generated=view.generated + steps * moving,
        kv_tokens=view.kv_tokens + steps * moving,
        late_tokens=view.late_tokens + came_late,
        state=state.astype(np.int8),
        step=at_step + steps,
        planned_step=at_step,
    )
    prefill = min(float(view.prefill_left()[batch].sum()), plan.prefill_budget_tokens)
    step_ms = view.model.step_ms(len(batch), float(view.context_tokens()[batch].sum()), prefill)
    again = policy.plan(later, NOW_MS + steps * slow * step_ms)
    assert again.order.tolist() == plan.order.tolist()
    assert again.prefill_budget_tokens == plan.prefill_budget_tokens
    assert again.max_batch == plan.max_batch


@every_policy
def test_empty_table_gives_an_empty_plan(name):
    plan = make_policy(name).plan(make_view(0, 0), NOW_MS)
    assert len(plan.order) == len(plan.evict) == 0


@every_policy
def test_nobody_who_can_run_is_left_out(name):
    """Every runnable request that is not given up is somewhere in the list, unless the list is long."""
    view = make_view(5, 30)
    plan = make_policy(name).plan(view, NOW_MS)
    wanted = view.runnable()
    wanted[plan.shed] = False
    assert sorted(plan.order.tolist()) == np.flatnonzero(wanted).tolist()


@pytest.mark.parametrize("name", ["fcfs", "sarathi"])
@given(view=views)
@settings(max_examples=30, deadline=None)
def test_first_come_is_never_overtaken(name, view):
    """No starvation: among equal priorities, whoever came first stands first, whatever arrives later."""
    order = make_policy(name).plan(view, NOW_MS).order
    for ahead, behind in itertools.pairwise(order):
        assert (-view.priority[ahead], view.arrival_ms[ahead]) <= (
            -view.priority[behind],
            view.arrival_ms[behind],
        )


def test_edf_takes_the_nearest_deadline_and_best_effort_last():
    view = make_view(3, 25)
    view = replace(view, priority=np.zeros(25, dtype=np.int32), token_limit=np.zeros(25, dtype=np.int64))
    plan = make_policy("edf").plan(view, NOW_MS)
    assert (np.diff(plan.scores[np.isfinite(plan.scores)]) >= 0).all()
    best_effort = view.slo_class[plan.order] == SloClass.BEST_EFFORT
    assert best_effort.any()
    assert not best_effort[: -int(best_effort.sum())].any()
    streams = np.flatnonzero(view.slo_class == SloClass.LATENCY)
    place = {row: i for i, row in enumerate(plan.order.tolist())}
    for row in streams.tolist():
        assert plan.scores[place[row]] == view.arrival_ms[row] + 500.0


def test_sarathi_leaves_room_for_decodes_and_fcfs_does_not():
    view = make_view(1, 20)
    assert make_policy("fcfs").plan(view, NOW_MS).prefill_budget_tokens >= 20 * 1_024
    plan = make_policy("sarathi", {"token_budget": 200}).plan(view, NOW_MS)
    head = plan.order[: CAPACITY.max_batch]
    decoding = int((view.prefill_left()[head] == 0).sum())
    assert decoding + plan.prefill_budget_tokens <= 200
    assert plan.prefill_budget_tokens % CAPACITY.prefill_chunk_tokens == 0


@pytest.mark.parametrize(
    ("name", "params", "match"),
    [
        ("magic", {}, "unknown batch policy"),
        ("sarathi", {"chunk": 1}, "no parameter"),
        ("sarathi", {"token_budget": "many"}, "is of type int"),
        ("sarathi", {"token_budget": True}, "is of type int"),
        ("fcfs", {"token_budget": 3}, "no parameter"),
    ],
)
def test_registry_refuses_what_it_does_not_know(name, params, match):
    with pytest.raises(ValueError, match=match):
        make_policy(name, params)


@given(view=views, name=st.sampled_from(sorted(POLICIES)))
@settings(max_examples=150, deadline=None)
def test_what_fits_fits(view, name):
    """The list can live in the engine together, and its head has room after the evictions."""
    order = make_policy(name).plan(view, NOW_MS).order
    fitting = fit(view, order, 0)
    kept, gone = fitting.order, fitting.evict
    assert not set(kept.tolist()) & set(gone.tolist())
    assert (view.kv_tokens[gone] > 0).all()
    assert [row for row in order.tolist() if row in set(kept.tolist())] == kept.tolist()
    assert fitting.valid_for_steps >= 1
    if not len(order):
        return
    assert kept[0] == order[0]  # whoever is most wanted always runs
    head = kept[: CAPACITY.max_batch]
    stays = np.setdiff1d(np.flatnonzero(view.kv_tokens > 0), np.concatenate([gone, head]))
    assert len(head) + len(stays) <= CAPACITY.max_resident
    held = int(view.context_tokens()[head].sum() + view.kv_tokens[stays].sum())
    if len(head) > 1 or len(stays):
        assert held <= CAPACITY.kv_tokens
    if len(gone):  # nothing is dropped without need
        worst = held + int(view.kv_tokens[gone[-1]]) + 32 * len(head)
        assert worst > CAPACITY.kv_tokens or len(head) + len(stays) + 1 > CAPACITY.max_resident


def test_the_youngest_unlisted_request_is_evicted_first():
    view = make_view(2, 9)
    capacity = replace(CAPACITY, max_resident=4, max_batch=2, kv_tokens=100_000)
    view = replace(
        view,
        capacity=capacity,
        arrival_ms=np.arange(9.0),
        kv_tokens=np.asarray([10, 10, 10, 10, 0, 0, 0, 0, 0]),
        token_limit=np.zeros(9, dtype=np.int64),
    )
    fitting = fit(view, np.asarray([5, 6]), 0)
    assert fitting.evict.tolist() == [3, 2]
    nothing_needed = fit(view, np.asarray([0, 1]), 0)
    assert len(nothing_needed.evict) == 0
