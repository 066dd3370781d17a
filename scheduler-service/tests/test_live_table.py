"""The live table against a plain dictionary, and its size."""

import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from paceline.common.v1 import engine_pb2
from paceline_core import lengths
from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.engine_model import EngineModel
from paceline_core.interner import Interner
from paceline_core.slo import Slo, SloClass
from paceline_scheduler.attempt import TIMELINE_EVENTS, Attempt
from paceline_scheduler.wire import PRIOR_CDF, capacity_from

CAPACITY = capacity_from(engine_pb2.EngineCapabilities(max_batch=4))


def attempt(key, router="r", tenant="t", task=""):
    slo = Slo(SloClass.TASK, e2e_ms=5.0, task_id=task) if task else Slo(SloClass.DEADLINE, e2e_ms=float(key))
    return Attempt(key, f"request-{key}", router, tenant, slo, 0, b"", None)


class TableMachine(RuleBasedStateMachine):
    """Adds, ends and removes in any order: rows never mix."""

    keys = Bundle("keys")

    def __init__(self):
        super().__init__()
        self.table = LiveTable(rows=2)
        self.expected = {}
        self.next_key = 1

    @rule(target=keys, router=st.sampled_from("ab"), task=st.sampled_from(["", "x", "y"]))
    def add(self, router, task):
        key = self.next_key
        self.next_key += 1
        made = attempt(key, router, f"tenant-{key % 3}", task)
        row = self.table.add(made, PRIOR_CDF, 100)
        self.table.prompt_tokens[row] = key
        self.expected[key] = made
        with pytest.raises(KeyError):
            self.table.add(attempt(key), PRIOR_CDF, 100)
        return key

    @rule(key=keys)
    def end(self, key):
        self.table.end(self.expected[key], RunState.FINISHED)
        self.table.end(self.expected[key], RunState.FINISHED)

    @rule(key=keys)
    def adopt(self, key):
        self.table.change_router(self.expected[key], "c")

    @rule(key=consumes(keys))
    def remove(self, key):
        assert self.table.remove(key) is self.expected.pop(key)
        assert self.table.remove(key) is None

    @invariant()
    def rows_hold_what_was_put_in(self):
        table = self.table
        assert len(table) == len(self.expected)
        assert {a.key for a in table} == self.expected.keys()
        keys = [*self.expected, 999_999]
        rows = table.rows_of(keys)
        assert rows[-1] == -1
        assert len(set(rows.tolist())) == len(rows)
        for key, row in zip(keys[:-1], rows, strict=False):
            made = self.expected[key]
            assert table.get(key) is made
            assert table.at(int(row)) is made
            assert table.prompt_tokens[row] == key
            assert table._routers.name(int(table.router[row])) == made.router_id
            assert table._tenants.name(int(table.tenant[row])) == made.tenant
        live = {a.key for a in self.expected.values() if table.state[a.row] != RunState.FINISHED}
        assert table.live == len(live)
        view = table.view(CAPACITY, EngineModel())
        assert {table.at(int(r)).key for r in view.row_id} == live
        assert sorted(view.prompt_tokens.tolist()) == sorted(live)
        assert view.length_cdf().shape == (len(live), lengths.K)

    def teardown(self):
        for key in list(self.expected):
            self.table.remove(key)
        assert len(self.table._routers) == len(self.table._tenants) == len(self.table._tasks) == 0


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_rows_are_used_again():
    table = LiveTable(rows=4)
    for key in range(1, 1_000):
        table.add(attempt(key), PRIOR_CDF, 100)
        if key > 3:
            table.remove(key - 3)
    assert table.rows == 4


def test_a_used_row_starts_clean():
    table = LiveTable(rows=1)
    first = attempt(1)
    row = table.add(first, PRIOR_CDF, 100)
    for name in ("generated", "token_limit", "isolate_until", "started", "kv_tokens", "at_risk"):
        getattr(table, name)[row] = 1
    table.end(first, RunState.FAILED)
    table.remove(1)
    assert table.add(attempt(2), PRIOR_CDF, 100) == row
    for name in ("generated", "token_limit", "isolate_until", "started", "kv_tokens", "at_risk"):
        assert getattr(table, name)[row] == 0
    assert table.alive[row]
    assert table.state[row] == RunState.QUEUED


def test_a_row_takes_at_most_a_kilobyte_beside_what_it_was_given():
    rows = 1_024
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    table = LiveTable(rows=16)
    for key in range(1, rows + 1):
        made = attempt(key)
        table.add(made, PRIOR_CDF, 100)
        for event in ("queued", "accepted", "running"):
            made.note(float(key), event)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert rows <= table.rows <= 1.125 * rows
    # Numbers, half a kilobyte of length table, the attempt object, its Slo and ids, and three events of its life.
    assert used / rows < 1_600


def test_a_timeline_is_bounded_and_keeps_both_ends():
    made = attempt(1)
    for i in range(1_000):
        made.note(float(i), f"event-{i}")
    assert len(made.timeline) == TIMELINE_EVENTS
    assert made.timeline[0][1] == "event-0"
    assert made.timeline[-1][1] == "event-999"


def test_interner_reuses_numbers_only_when_nobody_uses_them():
    names = Interner()
    a, b = names.acquire("a"), names.acquire("b")
    assert names.acquire("a") == a
    names.release(a)
    assert names.name(a) == "a"
    names.release(a)
    assert names.acquire("c") == a
    assert (names.name(a), names.name(b), len(names)) == ("c", "b", 2)
