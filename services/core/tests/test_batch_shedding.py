"""What every plan gives up, whatever its policy, and what could have been met; shares of tenants that come and go."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline_core.batch.fairness import TenantAccounts
from paceline_core.batch.laxity import attainable_ms
from paceline_core.batch.planning import decide
from paceline_core.batch.registry import POLICIES, make_policy
from paceline_core.slo import SloClass


def _views():
    spec = importlib.util.spec_from_file_location("batch_views", Path(__file__).with_name("batch_views.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NOW_MS, make_view = _views().NOW_MS, _views().make_view


@pytest.mark.parametrize("policy", ["fcfs", "sarathi"])
@pytest.mark.parametrize("seed", range(20))
def test_who_missed_and_asked_to_be_dropped_is_shed_under_policies_that_never_shed(policy, seed):
    view = make_view(seed, 24)
    decision = decide(make_policy(policy), view, NOW_MS, 256)
    missed = np.zeros(24, dtype=bool)
    for i in range(24):
        match SloClass(int(view.slo_class[i])):
            case SloClass.LATENCY:
                due = view.arrival_ms[i] + view.ttft_ms[i] + view.generated[i] * view.tbt_ms[i]
                missed[i] = due < NOW_MS or view.late_tokens[i] > 0
            case SloClass.DEADLINE:
                missed[i] = view.arrival_ms[i] + view.e2e_ms[i] < NOW_MS
            case SloClass.TASK:
                missed[i] = min(view.arrival_ms[i] + view.e2e_ms[i], view.task_due_ms[i]) < NOW_MS
    assert set(decision.shed.tolist()) == set(np.flatnonzero(missed & view.drops).tolist())
    assert not set(decision.order.tolist()) & set(decision.shed.tolist())


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", range(20))
def test_who_asked_to_be_finished_is_never_shed(policy, seed):
    """And runs when nobody else wants the engine."""
    rng = np.random.default_rng(seed)
    view = make_view(seed, 24)
    finishes = ~view.drops & (rng.random(24) < 0.7)
    untouched = np.zeros(24, dtype=np.int64)
    view = replace(
        view, finishes=finishes, arrival_ms=view.arrival_ms - 60_000, generated=untouched, kv_tokens=untouched
    )  # all of them new and late
    decision = decide(make_policy(policy), view, NOW_MS, 256)
    assert not finishes[decision.shed].any()
    assert len(decision.chosen.order) == len(decision.chosen.scores) == len(decision.chosen.reasons)
    alone = view.row_id[finishes & view.runnable()]
    everybody = set(decision.chosen.order.tolist()) | set(decision.evict.tolist())
    assert set(np.flatnonzero(np.isin(view.row_id, alone)).tolist()) <= everybody


def test_what_is_attainable_lies_ahead_and_grows_with_the_work():
    view = make_view(3, 24)
    attainable = attainable_ms(view, NOW_MS)
    assert (attainable > NOW_MS - view.arrival_ms).all()
    more = replace(
        view, task_rest_tokens=view.task_rest_tokens + 100.0, prompt_tokens=view.prompt_tokens + 64
    )
    grown = attainable_ms(more, NOW_MS) - attainable
    streams = view.slo_class == SloClass.LATENCY
    assert (grown[~streams] > grown[streams].max()).all()
    assert (grown > 0).all()


def test_a_number_that_stands_for_a_new_tenant_starts_with_an_empty_account():
    accounts = TenantAccounts()
    everybody, first = np.array([0, 1, 2]), np.array([0])
    accounts.open(1, 3.0)
    accounts.serve(everybody, first, np.array([100]))
    assert accounts.lag_tokens(everybody).tolist() == pytest.approx([-80.0, 60.0, 20.0])
    accounts.open(1)
    assert accounts.lag_tokens(everybody).tolist() == pytest.approx([-80.0, 0.0, 20.0])
    accounts.serve(everybody, first, np.array([30]))
    assert accounts.lag_tokens(everybody).tolist() == pytest.approx([-100.0, 10.0, 30.0])
