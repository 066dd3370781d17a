"""What each rival of `pace` is known for, on cases small enough to work out by hand."""

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core import lengths
from paceline_core.batch.hopeless import triage
from paceline_core.batch.plan import PlanReason
from paceline_core.batch.ranking import leading
from paceline_core.batch.registry import POLICIES, make_policy
from paceline_core.batch.slos_serve import admit
from paceline_core.batch.state import RunState
from paceline_core.slo import SloClass


def _load():
    spec = importlib.util.spec_from_file_location("batch_views", Path(__file__).with_name("batch_views.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_views = _load()
NOW_MS = _views.NOW_MS
# A step of one sequence takes 10 ms whatever its context, a prompt token 0.1 ms.
MODEL = replace(_views.MODEL, a_ms=10.0, b_ms=0.0, c_ms=0.0, a1_ms=0.0, p0_ms=0.0, d_ms=0.1, e_ms=0.0)
IN_FRAME = {"step": 25, "planned_step": 24}
FRAME_END = {"step": 50, "planned_step": 49}


def rows(count, batch, *, outputs=None, running=(), **columns):
    """`count` deadline requests that came just now, with 60 s each; `outputs` [N]: a length, or {length: share}."""
    view = _views.make_view(1, count)
    running = np.isin(np.arange(count), running)
    prompt = np.asarray(columns.pop("prompt_tokens", np.full(count, 10)))
    generated = np.asarray(columns.pop("generated", np.where(running, 1, 0)))
    started = running | (generated > 0)
    mass = np.zeros((count, lengths.K))
    for row, output in enumerate(outputs or [100] * count):
        for length, share in (output if isinstance(output, dict) else {output: 1.0}).items():
            mass[row, int(lengths.bin_of(length))] += share
    limit = np.full(count, 30_000)
    slo_class = np.asarray(columns.get("slo_class", np.full(count, SloClass.DEADLINE)), dtype=np.int8)
    timed = (slo_class == SloClass.DEADLINE) | (slo_class == SloClass.TASK)
    base = {
        "row_id": np.arange(count),
        "slo_class": slo_class,
        "arrival_ms": NOW_MS + np.arange(count) * 1e-3,
        "ttft_ms": np.zeros(count),
        "tbt_ms": np.zeros(count),
        "e2e_ms": np.where(timed, 60_000.0, 0.0),
        "call_due_ms": np.full(count, np.inf),
        "task_due_ms": np.full(count, np.inf),
        "task_rest_tokens": np.zeros(count),
        "late_tokens": np.zeros(count, dtype=np.int64),
        "drops": np.zeros(count, dtype=bool),
        "prompt_tokens": prompt,
        "generated": generated,
        "kv_tokens": np.where(started, prompt + np.maximum(generated - 1, 0), 0),
        "token_limit": np.zeros(count, dtype=np.int64),
        "max_tokens": limit,
        "priority": np.zeros(count, dtype=np.int32),
        "state": np.where(running, RunState.RUNNING, np.where(started, RunState.PAUSED, RunState.QUEUED)),
        "lengths": _views.estimates_of(lengths.cdf_from_probabilities(mass), np.arange(count), limit),
        "capacity": replace(_views.CAPACITY, max_batch=batch, max_resident=64, kv_tokens=100_000),
        "model": MODEL,
    }
    columns = {name: np.asarray(value) if name in base else value for name, value in columns.items()}
    return replace(view, **{**base, **columns})


def order(name, view, **params):
    return make_policy(name, params).plan(view, NOW_MS).order.tolist()


def test_every_rival_has_its_name():
    baselines = {"fcfs", "sarathi", "las", "sjf", "sjf-mean", "edf", "edf-shed", "llf-shed", "slos-serve"}
    gmax = {"gmax", "gmax-artifact", "gmax-no-analyzer", "gmax-no-grouping", "gmax-no-refine"}
    assert baselines | gmax | {"pace", "oracle"} <= set(POLICIES)


@given(seed=st.integers(0, 10_000), size=st.integers(0, 60), count=st.integers(0, 70))
@settings(max_examples=100, deadline=None)
def test_leading_is_the_start_of_the_whole_sort(seed, size, count):
    rng = np.random.default_rng(seed)
    keys = (rng.integers(0, 3, 100), rng.integers(0, 3, 100) / 7, rng.permutation(100))
    some = rng.permutation(100)[:size]
    whole = some[np.lexsort([key[some] for key in keys[::-1]])]
    assert leading(some, keys, count).tolist() == whole[:count].tolist()


# --- gmax ---


def test_gmax_groups_by_input_length_and_its_ablation_does_not():
    # (in + out) / out: 10.1, 9.9, 9.8 and 9.7, all within 95 % of the second; by input length 3, 1, 2, 0.
    view = rows(4, 2, prompt_tokens=[63, 53, 61, 52], outputs=[7, 6, 7, 6])
    assert set(order("gmax", view)[:2]) == {0, 2}
    assert order("gmax-no-grouping", view)[:2] == [0, 1]
    assert order("gmax", view, group_share=0.999)[:2] == [0, 1]


def test_gmax_preempts_at_frame_ends_only_and_for_a_gain_only():
    view = rows(3, 1, prompt_tokens=[10, 10, 500], outputs=[300, 300, 10], running=[0])
    inside = make_policy("gmax").plan(replace(view, **IN_FRAME), NOW_MS)
    assert inside.order.tolist() == [0, 2, 1]
    assert inside.reasons[0] is PlanReason.IN_FRAME
    assert inside.valid_for_steps == 25
    assert order("gmax", replace(view, **FRAME_END)) == [2, 0, 1]
    # The newcomer brings about 51 - 1 tokens per step for 50 steps: 2,500. A change of 30 s stalls 3,000.
    for cost_ms, first in ((20_000.0, 2), (30_000.0, 0)):
        dear = replace(view.capacity, run_set_change_cost_ms=cost_ms)
        assert order("gmax", replace(view, capacity=dear, **FRAME_END))[0] == first
    # What has to be made again is counted, too.
    lossy = replace(view.capacity, keeps_kv_when_paused=False)
    long = replace(view, kv_tokens=np.asarray([300_000, 0, 0]), capacity=lossy, **FRAME_END)
    assert order("gmax", long)[0] == 0


def test_gmax_fills_a_free_slot_within_the_frame():
    view = rows(3, 2, prompt_tokens=[10, 10, 500], outputs=[300, 300, 10], running=[0])
    assert order("gmax", replace(view, **IN_FRAME)) == [0, 2, 1]


def test_gmax_drops_who_never_began_in_time():
    best_effort = [SloClass.DEADLINE] * 3 + [SloClass.BEST_EFFORT]
    late = [NOW_MS - 61_000, NOW_MS - 61_000, NOW_MS - 59_000, NOW_MS - 61_000]
    view = rows(4, 1, running=[1], arrival_ms=late, slo_class=np.asarray(best_effort, dtype=np.int8))
    plan = make_policy("gmax").plan(replace(view, **FRAME_END), NOW_MS)
    assert plan.shed.tolist() == [0]
    assert sorted(plan.order.tolist()) == [1, 2, 3]
    assert len(make_policy("gmax", {"max_wait_ms": 0.0}).plan(replace(view, **FRAME_END), NOW_MS).shed) == 0


def test_gmax_lets_best_effort_earn_its_turn():
    classes = np.asarray([SloClass.DEADLINE, SloClass.BEST_EFFORT], dtype=np.int8)
    view = rows(2, 1, prompt_tokens=[50, 50], outputs=[50, 50], slo_class=classes)
    # A frame of 50 steps lasts 0.5 s. The other one's priority: 2 tokens per 10 ms, 200 a second.
    for waited_s, first in ((80, 0), (120, 1)):
        waiting = replace(view, arrival_ms=np.asarray([NOW_MS, NOW_MS - waited_s * 1000.0]), **FRAME_END)
        assert order("gmax", waiting)[0] == first


def test_only_refinement_learns_that_an_answer_outlived_its_estimate():
    outputs = [{40: 0.97, 4_000: 0.03}, 100]
    view = rows(2, 1, outputs=outputs, running=[0], generated=[60, 0], prompt_tokens=[10, 100])
    assert order("gmax", replace(view, **FRAME_END))[0] == 1
    assert order("gmax-no-refine", replace(view, **FRAME_END))[0] == 0
    # A look each 50 tokens: at 49 the estimate is still the one of the arrival.
    early = rows(2, 1, outputs=outputs, running=[0], generated=[49, 0], prompt_tokens=[10, 100])
    assert order("gmax", replace(early, **FRAME_END))[0] == 0


def test_gmax_counts_a_tenants_lag_as_far_as_it_is_told_to():
    view = rows(2, 1, prompt_tokens=[500, 10], tenant_lag_tokens=np.asarray([0.0, 5_000.0]))
    assert order("gmax", view)[0] == 0
    assert order("gmax", view, fairness=0.5)[0] == 1


def test_the_artifact_swaps_three_at_most_and_forgets_who_is_late():
    view = rows(10, 5, prompt_tokens=[10] * 5 + [500] * 5, outputs=[900] * 5 + [20] * 5, running=range(5))
    assert len(set(order("gmax-artifact", replace(view, **FRAME_END))[:5]) & set(range(5))) == 2
    assert len(set(order("gmax", replace(view, **FRAME_END))[:5]) & set(range(5))) == 0
    assert set(order("gmax-artifact", replace(view, **IN_FRAME))[:5]) == set(range(5))
    # Equal work of a second each, one with 10 s to go and one with 0.8: 0.8^100 of its reward is left.
    pair = rows(2, 1, outputs=[100, 100], e2e_ms=[800.0, 10_000.0])
    assert order("gmax-artifact", pair) == [1, 0]
    assert order("gmax", pair) == [0, 1]  # the deadline cancels out


# --- baselines ---


def test_las_levels_are_buckets():
    view = rows(3, 1, generated=[399, 0, 400], running=[0])
    plan = make_policy("las").plan(view, NOW_MS)
    assert plan.order.tolist() == [0, 1, 2]
    assert plan.valid_for_steps == 1
    assert order("las", replace(view, generated=view.generated + np.asarray([1, 0, 0]))) == [1, 0, 2]


def test_sjf_goes_by_the_upper_bound_and_sjf_mean_by_the_mean():
    view = rows(2, 1, outputs=[{20: 0.9, 2_000: 0.1}, 500])
    assert order("sjf", view) == [1, 0]
    assert order("sjf-mean", view) == [0, 1]


def test_sjf_stands_by_who_runs_until_the_frame_ends():
    view = rows(2, 1, outputs=[500, 20], running=[0])
    assert order("sjf", replace(view, **IN_FRAME)) == [0, 1]
    assert order("sjf", replace(view, **FRAME_END)) == [1, 0]


def test_least_laxity_sees_work_and_edf_does_not():
    view = rows(2, 1, outputs=[600, 10], e2e_ms=[10_000.0, 6_000.0])
    assert order("llf-shed", view) == [0, 1]
    assert order("edf-shed", view) == order("edf", view) == [1, 0]


@pytest.mark.parametrize("name", ["edf-shed", "llf-shed"])
def test_who_is_out_of_reach_stands_last_or_is_shed(name):
    view = rows(
        4, 1, outputs=[100] * 4, e2e_ms=[300.0, 400.0, 9_000.0, 8_000.0], drops=[False, True, True, True]
    )
    plan = make_policy(name).plan(view, NOW_MS)
    assert plan.order.tolist() == [3, 2, 0]
    assert plan.shed.tolist() == [1]
    assert plan.reasons[-1] is PlanReason.UNATTAINABLE
    assert PlanReason.UNATTAINABLE not in plan.reasons[:-1]
    assert order("edf", view)[:2] == [0, 1]


def test_triage_knows_what_cannot_be_made():
    # Nine or ten tokens, 10 ms each, after 10 prompt tokens of 0.1 ms: 91 ms at least.
    budget = [80.0, 105.0]
    assert triage(rows(2, 1, outputs=[10, 10], e2e_ms=budget), NOW_MS).lost.tolist() == [True, False]
    # A chance of 3 % is enough to stay, half a percent is not.
    for share, lost in ((0.03, False), (0.005, True)):
        view = rows(1, 1, outputs=[{5: share, 3_000: 1.0 - share}], e2e_ms=[100.0])
        assert triage(view, NOW_MS).lost.tolist() == [lost]
    streams = {"slo_class": np.full(3, SloClass.LATENCY, dtype=np.int8), "tbt_ms": np.full(3, 20.0)}
    view = rows(3, 1, **streams, ttft_ms=[10.0, 50.0, 50.0], late_tokens=[0, 0, 1])
    assert triage(view, NOW_MS).lost.tolist() == [True, False, True]
    # A task's rest counts half: 10 + 100 / 2 tokens, 600 ms.
    task = {"slo_class": np.full(2, SloClass.TASK, dtype=np.int8), "task_rest_tokens": np.full(2, 100.0)}
    view = rows(2, 1, outputs=[10, 10], task_due_ms=NOW_MS + np.asarray([550.0, 620.0]), **task)
    assert triage(view, NOW_MS).lost.tolist() == [True, False]
    nobody = np.full(2, SloClass.BEST_EFFORT, dtype=np.int8)
    assert not triage(rows(2, 1, slo_class=nobody), NOW_MS + 1e9).lost.any()


def test_triage_says_how_long_it_holds():
    view = rows(2, 1, outputs=[10, 10], e2e_ms=[500.0, 105.0])
    holds_ms = triage(view, NOW_MS).holds_ms
    assert not triage(view, NOW_MS + holds_ms - 0.01).lost.any()
    assert triage(view, NOW_MS + 20.0).lost.tolist() == [False, True]
    assert holds_ms < 20.0


# --- slos-serve ---


def _fits(due, prompt, share, some):
    """The accounting of `admit`, for one choice."""
    spare = before = 0.0
    n = 0
    for i, is_in in enumerate(some):
        spare += (due[i] - before) * share[n]
        before = due[i]
        if is_in:
            spare -= prompt[i]
            n += 1
            if spare < 0 or n >= len(share):
                return False
    return True


@given(seed=st.integers(0, 100_000), count=st.integers(0, 7), slots=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_admission_takes_as_many_as_any_choice_could(seed, count, slots):
    rng = np.random.default_rng(seed)
    due = np.sort(rng.uniform(1, 100, count))
    prompt = rng.uniform(1, 40, count)
    share = np.sort(rng.uniform(0, 1, slots + 1))[::-1].copy()
    chosen = admit(due, prompt, share)
    assert _fits(due, prompt, share, chosen.tolist())
    best = max(
        sum(some)
        for some in itertools.product([False, True], repeat=count)
        if sum(some) <= slots and _fits(due, prompt, share, some)
    )
    assert int(chosen.sum()) == best


def test_slos_serve_passes_over_a_prompt_that_would_cost_two():
    stream = {"slo_class": np.full(4, SloClass.LATENCY, dtype=np.int8), "tbt_ms": np.full(4, 100.0)}
    view = rows(
        4,
        3,
        running=[3],
        prompt_tokens=[4_000, 1_500, 1_500, 10],
        ttft_ms=[500.0, 550.0, 600.0, 90_000.0],
        **stream,
    )
    assert order("slos-serve", view) == [3, 1, 2, 0]
    assert order("edf", view)[0] == 0
    plan = make_policy("slos-serve").plan(view, NOW_MS)
    assert plan.reasons == [PlanReason.ADMITTED] * 3 + [PlanReason.SPARE]
    # 100 ms of pace less a step of 10 leave 900 tokens: 14 chunks of 64.
    assert plan.prefill_budget_tokens == 896
