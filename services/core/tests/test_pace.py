"""What `pace` owes beyond the conformance suite: its demand test against brute force, streams that never run dry, best
effort that does not starve, tenants that cannot buy more than their share with urgency."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core import lengths
from paceline_core.batch.fairness import BOUND_TOKENS, TenantAccounts, settled
from paceline_core.batch.pace.demand import Demand, admit, fits
from paceline_core.batch.pace.policy import Pace
from paceline_core.batch.planning import decide
from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import Capacity
from paceline_core.engine_model import EngineModel
from paceline_core.slo import OnMiss, Slo, SloClass

MODEL = EngineModel(a_ms=10.0, p0_ms=1.0, d_ms=0.1)
STEP_MS = 10.0


def scheduled(work, slots):
    """True if all of `work` ((tokens, deadline in steps), ...) can be made, one each per step, `slots` in a step."""

    @functools.cache
    def can(left, step):
        if not any(left):
            return True
        if any(tokens > due - step for tokens, (_, due) in zip(left, work, strict=True) if tokens):
            return False
        open_ = [i for i, tokens in enumerate(left) if tokens]
        for pick in _picks(open_, slots):
            after = tuple(tokens - (i in pick) for i, tokens in enumerate(left))
            if can(after, step + 1):
                return True
        return False

    return can(tuple(tokens for tokens, _ in work), 0)


def _picks(rows, slots):
    if len(rows) <= slots:
        return [frozenset(rows)]
    if slots == 0:
        return [frozenset()]
    with_first = [pick | {rows[0]} for pick in _picks(rows[1:], slots - 1)]
    return with_first + _picks(rows[1:], slots)


def demand_of(work, slots):
    """In engine time with steps of STEP_MS."""
    return Demand(
        due_ms=np.array([due * STEP_MS for _, due in work]),
        cost_ms=np.array([tokens * STEP_MS / slots for tokens, _ in work]),
        variance=np.zeros(len(work)),
        owner=np.arange(len(work)),
    )


works = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=5)


@given(work=works, slots=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_demand_test_never_rejects_what_can_be_scheduled(work, slots):
    everybody = np.ones(len(work), dtype=bool)
    if scheduled(tuple(work), slots):
        assert fits(demand_of(work, slots), everybody)
        assert admit(demand_of(work, slots), np.ones(len(work)), 0.0).all()


def test_demand_test_seldom_accepts_what_cannot_be_scheduled():
    """Together with each request's own laxity, as the policy uses it."""
    rng = np.random.default_rng(0)
    accepted = wrong = 0
    for _ in range(500):
        slots = int(rng.integers(1, 4))
        work = tuple((int(rng.integers(1, 5)), int(rng.integers(1, 7))) for _ in range(rng.integers(1, 6)))
        alone = all(tokens <= due for tokens, due in work)
        if alone and fits(demand_of(work, slots), np.ones(len(work), dtype=bool)):
            accepted += 1
            wrong += not scheduled(work, slots)
    assert accepted > 100
    assert wrong / accepted < 0.1


@given(seed=st.integers(0, 10_000), size=st.integers(1, 60), z=st.sampled_from([0.0, 1.0]))
@settings(max_examples=40, deadline=None)
def test_what_is_admitted_fits_and_the_least_dense_leave(seed, size, z):
    rng = np.random.default_rng(seed)
    demand = Demand(
        due_ms=rng.uniform(1, 1_000, size),
        cost_ms=rng.uniform(0.1, 100, size),
        variance=rng.uniform(0, 100, size),
        owner=rng.permutation(size),
    )
    density = rng.integers(0, 5, size).astype(float)
    kept = admit(demand, density, z)
    assert not kept[density == 0].any()
    assert fits(demand, kept, z)
    if fits(demand, density > 0, z):
        assert (kept == (density > 0)).all()


@dataclass
class Attempt:
    key: int
    slo: Slo
    tenant: str = "t"
    row: int = -1
    router_id: str = "r"


class FakeEngine:
    """A table, and steps that do what decisions say: a token for each decoding request, prompts at once."""

    def __init__(self, policy, slots):
        self.table = LiveTable(64)
        self.policy, self.slots, self.now_ms, self.steps, self.planned = policy, slots, 0.0, 0, -1
        self.capacity = Capacity(slots, 1_000, 1_000_000, 8_192, 64)
        self.heads = []
        self.shed = 0
        self.accounts = None
        self.served = {}
        self._key = 0

    def add(self, slo, tokens, tenant="t", prompt=10):
        attempt = Attempt(self._key, slo, tenant)
        self._key += 1
        masses = np.zeros(lengths.K)
        masses[lengths.bin_of(tokens)] = 1.0
        row = self.table.add(attempt, lengths.cdf_from_probabilities(masses)[0], tokens)
        self.table.arrival_ms[row] = self.now_ms
        self.table.prompt_tokens[row] = prompt
        self.served.setdefault(tenant, 0)
        return row

    def step(self):
        table = self.table
        if self.accounts is not None:
            live = table.live_rows()
            table.tenant_lag_tokens[live] = self.accounts.lag_tokens(table.tenant[live])
        view = table.view(self.capacity, MODEL, step=self.steps, planned_step=self.planned)
        decision = decide(self.policy, view, self.now_ms, 256)
        self.planned = self.steps
        for row in view.row_id[decision.shed].tolist():
            self.shed += 1
            table.remove(table.at(row).key)
        head = view.row_id[decision.order[: self.slots]]
        self.heads.append(frozenset(head.tolist()))
        stopped = table.state == RunState.RUNNING
        table.state[stopped] = RunState.PAUSED
        table.state[head] = RunState.RUNNING
        self.now_ms += STEP_MS
        self.steps += 1
        table.generated[head] += 1
        table.kv_tokens[head] = table.prompt_tokens[head] + table.generated[head] - 1
        due = table.arrival_ms[head] + table.ttft_ms[head] + (table.generated[head] - 1) * table.tbt_ms[head]
        late = (table.slo_class[head] == SloClass.LATENCY) & (due < self.now_ms)
        table.late_tokens[head] += late
        if self.accounts is not None:
            self.accounts.serve(table.tenant[table.live_rows()], table.tenant[head], np.ones(len(head)))
        for row in head.tolist():
            self.served[table.at(row).tenant] += 1
            if table.generated[row] >= table.max_tokens[row]:
                table.remove(table.at(row).key)


def test_paced_streams_never_run_dry_and_best_effort_gets_the_rest():
    """Sixteen streams of a token each four steps fill a batch of four if they are paced, with a tenth to spare."""
    engine = FakeEngine(Pace(), slots=4)
    streams = [engine.add(Slo(SloClass.LATENCY, ttft_ms=1_000, tbt_ms=45), 400) for _ in range(14)]
    idle = engine.add(Slo(SloClass.BEST_EFFORT), 4_000)
    for _ in range(600):
        engine.step()
    assert engine.table.late_tokens[streams].sum() == 0
    assert engine.table.generated[streams].min() >= 600 * STEP_MS / 45 - 23
    assert engine.table.generated[idle] > 100


def test_the_run_set_is_kept_for_a_frame():
    engine = FakeEngine(Pace(), slots=4)
    for _ in range(40):
        engine.add(Slo(SloClass.DEADLINE, e2e_ms=60_000), 2_000)
    for _ in range(64):
        engine.step()
    changes = [now != before for before, now in zip(engine.heads, engine.heads[1:], strict=False)]
    assert all(len(head) <= 4 for head in engine.heads)
    assert not any(changed for step, changed in enumerate(changes, start=1) if step % 8)


def test_hopeless_work_is_shed_where_nothing_is_lost_and_with_it_its_task():
    engine = FakeEngine(Pace(), slots=2)
    for _ in range(30):  # enough for a minute's work: not all can be in time
        engine.add(Slo(SloClass.DEADLINE, e2e_ms=10_000), 900)
    late = engine.add(Slo(SloClass.DEADLINE, e2e_ms=100), 900)
    dead = [engine.add(Slo(SloClass.TASK, e2e_ms=50, task_id="x"), 900) for _ in range(2)]
    begun = engine.add(Slo(SloClass.DEADLINE, e2e_ms=100), 900)
    engine.table.generated[begun] = 5
    dropped = engine.add(Slo(SloClass.DEADLINE, e2e_ms=100, on_miss=OnMiss.DROP), 900)
    engine.table.generated[dropped] = 5
    engine.table.task_due_ms[dead] = [50, 1e9]  # one call of the task is enough
    engine.step()
    alive = engine.table.alive
    assert not alive[[late, *dead, dropped]].any()
    assert alive[begun]
    assert begun not in engine.heads[-1]


@pytest.mark.parametrize(("fair_tokens", "floor", "ceiling"), [(200.0, 0.4, 0.6), (0.0, 0.0, 0.2)])
def test_a_tenant_that_overstates_its_urgency_pays_for_it(fair_tokens, floor, ceiling):
    """Two tenants ask for the double of the engine; one calls everything urgent. Accounts hold it to its share."""
    engine = FakeEngine(Pace(fair_tokens=fair_tokens), slots=4)
    engine.accounts = TenantAccounts()
    for step in range(900):
        if step % 25 == 0:
            engine.add(Slo(SloClass.DEADLINE, e2e_ms=1_500), 100, "loud")
            engine.add(Slo(SloClass.DEADLINE, e2e_ms=6_000), 100, "honest", prompt=5)
        engine.table.priority[engine.table.tenant == 0] = 1
        engine.step()
    share = engine.served["honest"] / sum(engine.served.values())
    assert floor <= share <= ceiling


@given(seed=st.integers(0, 10_000), tenants=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_accounts_add_up(seed, tenants):
    rng = np.random.default_rng(seed)
    lag, weight = rng.uniform(-100, 100, tenants), rng.uniform(0.5, 2, tenants)
    served, present = rng.uniform(0, 50, tenants), rng.random(tenants) < 0.7
    served[~present] = 0.0
    after = settled(lag, served, present, weight)
    assert (after[~present] == 0).all()
    assert after[present].sum() == pytest.approx(lag[present].sum())
    assert (np.abs(settled(1e9 * lag, served, present, weight)) <= BOUND_TOKENS).all()
