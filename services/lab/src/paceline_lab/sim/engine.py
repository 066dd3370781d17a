"""One simulated engine under one batch policy: when it plans, and what its plan's steps come to."""

from collections.abc import Callable
from typing import Final

import numpy as np

from paceline_core.batch.fairness import TenantAccounts
from paceline_core.batch.planning import decide
from paceline_core.batch.policy import BatchPolicy, EstimateUse
from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import IntArray
from paceline_core.engine_model import EngineModelFitter
from paceline_core.engines.roofline import step_times
from paceline_core.tracker import SloTracker
from paceline_lab.sim.call import SimCall
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import Estimates
from paceline_lab.sim.fitting import Fitting
from paceline_lab.sim.steps import NOBODY, Run, Steps

_PLAN_LENGTH: Final = 1024
_WAIT_MS: Final = 20.0
"""A policy that runs nobody although requests live is asked again after this."""
_LONGEST_RUN: Final = 4096


class SimEngine:
    """The engine, its live table and its tracker. Times are milliseconds of the simulation."""

    def __init__(
        self,
        number: int,
        spec: EngineSpec,
        policy: BatchPolicy,
        estimates: Estimates,
        true_tokens: IntArray,
        *,
        skip: bool = True,
        replan_every_step: bool = False,
    ) -> None:
        """`true_tokens` [calls of the workload]: what policies do not see. `skip=False`: every step is an event;
        `replan_every_step`: plans are made anew at every step, whatever they say about how long they hold."""
        self.number = number
        self.spec = spec
        self.capacity = spec.capacity
        self.table: LiveTable[SimCall] = LiveTable(64)
        self.tracker = SloTracker(64)
        self.fitter = EngineModelFitter(spec.profile.model)
        self.run: Run | None = None
        self.steps = 0
        self.plans = 0
        self.busy_ms = 0.0
        self._policy = policy
        self._estimates = estimates
        self._truth = true_tokens
        self._longest_run = _LONGEST_RUN if skip and not replan_every_step else 1
        self._every_step = replan_every_step
        times = step_times(spec.profile)
        self._work = Steps(self.table, self.tracker, self.capacity, times)
        self._fitting = Fitting(self.fitter, times)
        self._refined = np.zeros(64, dtype=np.int64)
        self._valid_left = 0
        self._planned_step = -1
        self._dirty = True
        self._observe = True
        self._cancels: list[SimCall] = []
        self._accounts = TenantAccounts()
        self.given_up: list[SimCall] = []
        """Calls that the policy shed since the owner last looked."""
        self.on_landed: Callable[[SimCall], None] | None = None
        """Told when a landing has prefilled what it needs; it calls `take_over` or `cancel`."""
        self._landings = 0

    # -- what the simulator asks ---------------------------------------------------------------------------------

    def add(
        self, call: SimCall, arrived_ms: float, call_due_ms: float, task_due_ms: float, rest_tokens: float
    ) -> None:
        """A call arrives, or comes from another engine: it takes part in the next plan."""
        table = self.table
        key = call.key
        row = table.add(
            call, self._estimates.initial[key].astype(np.float64), int(self._estimates.limit[key])
        )
        self.tracker.grow(table.rows)
        if row >= len(self._refined):
            self._refined = np.concatenate([self._refined, np.zeros_like(self._refined)])
        call.engine = self.number
        table.arrival_ms[row] = arrived_ms
        table.prompt_tokens[row] = call.call.prompt_tokens
        table.call_due_ms[row] = call_due_ms
        table.task_due_ms[row] = task_due_ms
        table.task_rest_tokens[row] = rest_tokens
        table.priority[row] = call.job.job.priority
        self._work.admit(row, int(self._truth[key]))
        self._refined[row] = 0
        self.tracker.begin(row, call.slo, arrived_ms)
        self._dirty = True

    def land(self, call: SimCall, source: "SimEngine", generated: int) -> None:
        """A call of `source` is to go on here: prompt and the tokens that are out are prefilled, and `on_landed` is
        told when that is done."""
        there, row = source.table, _row_of(call)
        due_ms, task_due_ms = float(there.call_due_ms[row]), float(there.task_due_ms[row])
        self.add(call, call.released_ms, due_ms, task_due_ms, float(there.task_rest_tokens[row]))
        self.table.generated[call.row] = generated
        self.table.state[call.row] = RunState.EVICTED
        self._work.replay(call.row)
        self._landings += 1

    def take_over(self, call: SimCall, source: "SimEngine", generated: int, now_ms: float) -> None:
        """A landed call goes on here from the `generated` tokens that are out by now. The token that its prefill made
        counts if `source` has not made it."""
        row, table, tracker = np.array([call.row]), self.table, self.tracker
        seen = int(source.table.generated[_row_of(call)])
        tracker.take_over(call.row, source.tracker, _row_of(call))
        out = max(generated, int(table.generated[call.row]))
        if out > seen:
            tracker.tokens(row, np.array([seen]), np.array([out - seen]), now_ms)
        if generated > table.generated[call.row]:
            table.generated[call.row] = generated
            self._work.replay(call.row)
        table.last_token_ms[row] = now_ms
        table.late_tokens[row] = tracker.late_tokens(row)
        self._landings -= 1
        self._dirty = True

    def cut(self, now_ms: float) -> float | None:
        """Something happened that the next plan has to know: end the run with the step under way.

        Returns when that step ends; None when the engine is idle and may begin at once.
        """
        run = self.run
        self._dirty = True
        if run is None:
            return None
        if run.steps > 1:
            whole = self._work.done(run, now_ms)
            if whole + 1 < run.steps:
                run.steps = whole + 1
                run.end_ms = float(self._work.ends(run)[whole])
        return run.end_ms

    def cancel(self, call: SimCall) -> None:
        """End a call before its time: with the step under way, or before the next plan."""
        self._landings -= call.origin is not None
        self._cancels.append(call)
        self._dirty = True

    @property
    def kv_used(self) -> int:
        """KV tokens of all residents."""
        return self._work.kv_used

    @property
    def output_tokens(self) -> int:
        """Written so far, by all calls."""
        return self._work.output_tokens

    @property
    def estimate_use(self) -> EstimateUse:
        """Whose length estimates its policy is given."""
        return self._policy.estimates

    def states(self) -> IntArray:
        """[EVICTED + 1] Live calls by run state."""
        rows = self.table.live_rows()
        return np.bincount(self.table.state[rows], minlength=RunState.EVICTED + 1)

    def prefill_owed(self) -> int:
        """Prompt tokens of live calls that are not prefilled."""
        return self._work.prefill_owed(self.table.live_rows())

    def written(self, now_ms: float) -> tuple[IntArray, IntArray]:
        """[N] Rows of live calls, and [N] their output tokens so far, those of the run under way included."""
        rows = self.table.live_rows()
        generated = self.table.generated[rows].copy()
        run = self.run
        if run is not None and len(run.decodes) and not run.prefills:
            generated[self._work.running(rows)] += self._work.done(run, now_ms)
        return rows, generated

    def written_of(self, call: SimCall, now_ms: float) -> int:
        """Output tokens of one call so far."""
        rows, generated = self.written(now_ms)
        return int(generated[np.searchsorted(rows, call.row)])

    def output_owed(self, now_ms: float) -> float:
        """Expected output tokens of live calls still to come."""
        rows, generated = self.written(now_ms)
        return float(self.table.lengths.mean_left(rows, generated).sum())

    def begin(self, now_ms: float) -> float | None:
        """Begin what comes next; when it ends, or None when there is nothing to do until a call arrives."""
        self._drop_cancelled(now_ms)
        if not self.table.live:
            self._work.mark_run_set(NOBODY)
            self._work.order = NOBODY
            return None
        if self._dirty or self._valid_left <= 0 or self._every_step:
            self._plan(now_ms)
        run = self._compose(now_ms)
        if run is None and not self._dirty:
            self._plan(now_ms)
            run = self._compose(now_ms)
        if run is None:
            self._work.mark_run_set(NOBODY)
            self._valid_left = 0
            return now_ms + _WAIT_MS if self.table.live else None
        self.run = run
        return run.end_ms

    def finish(self, now_ms: float) -> list[SimCall]:
        """The steps under way are over: take their effects in. Returns the calls that ended well, with outcomes."""
        run = self.run
        if run is None:
            return []
        self.run = None
        self.steps += run.steps
        self._valid_left -= run.steps
        self.busy_ms += now_ms - run.start_ms
        if self._observe:
            self._observe = False
            self._fitting.observe(
                run.step_ms,
                len(run.decodes),
                run.context_tokens,
                run.prefill_tokens,
                run.products,
                len(run.prefills),
            )
        made = self._work.carry_out(run, now_ms)
        self._dirty = self._dirty or len(made) > len(run.decodes)  # a prefill came to its end
        ended: list[SimCall] = []
        if self._landings:
            made = self._without_landed(made)
        if len(made):
            table = self.table
            table.last_token_ms[made] = now_ms
            table.late_tokens[made] = self.tracker.late_tokens(made)
            for row in self._work.over(made).tolist():
                call = table.at(row)
                call.outcome = self.tracker.end(row, now_ms, completed=True)
                self._leave(row)
                ended.append(call)
        self._drop_cancelled(now_ms)
        return ended

    def _without_landed(self, made: IntArray) -> IntArray:
        """Landings among those that made a token are told of: their tokens are no ordinary ones."""
        landed = [call for row in made.tolist() if (call := self.table.at(row)).origin is not None]
        for call in landed:
            assert self.on_landed is not None
            self.on_landed(call)
        return made[~np.isin(made, [call.row for call in landed])] if landed else made

    def _compose(self, now_ms: float) -> Run | None:
        return self._work.compose(now_ms, min(self._longest_run, self._valid_left))

    def _leave(self, row: int) -> None:
        """A call is over: free what it holds."""
        self._work.leave(row)
        self._dirty = True

    def _drop_cancelled(self, now_ms: float) -> None:
        for call in self._cancels:
            if self.table.get(call.key) is call:
                call.outcome = self.tracker.end(call.row, now_ms, completed=False)
                self._leave(call.row)
        self._cancels.clear()

    # -- planning --------------------------------------------------------------------------------------------------

    def _plan(self, now_ms: float) -> None:
        table = self.table
        rows = table.live_rows()
        self._refine(rows)
        self._settle_tenants(rows)
        view = table.view(
            self.capacity, self.fitter.model, rows, step=self.steps, planned_step=self._planned_step
        )
        decision = decide(self._policy, view, now_ms, _PLAN_LENGTH)
        self._planned_step = self.steps
        self.plans += 1
        self._dirty = False
        self._observe = True
        work = self._work
        work.order = rows[decision.order]
        work.batch = min(decision.max_batch or self.spec.max_batch, self.spec.max_batch)
        work.budget = decision.prefill_budget_tokens
        self._valid_left = max(1, decision.valid_for_steps)
        for row in rows[decision.evict].tolist():
            work.evict(row)
        for row in rows[decision.shed].tolist():
            call = table.at(row)
            call.outcome = self.tracker.end(row, now_ms, completed=False)
            self._leave(row)
            self.given_up.append(call)
            self._dirty = False

    def _settle_tenants(self, rows: IntArray) -> None:
        """Book the work since the last plan to the tenants it was for."""
        table = self.table
        if self._work.served:
            tenants, tokens = (np.concatenate(column) for column in zip(*self._work.served, strict=True))
            self._accounts.serve(table.tenant[rows], tenants, tokens)
            self._work.served.clear()
        table.tenant_lag_tokens[rows] = self._accounts.lag_tokens(table.tenant[rows])

    def _refine(self, rows: IntArray) -> None:
        """Take in the estimates that came with progress since the last plan."""
        every = self._estimates.refine_every
        if not every:
            return
        table = self.table
        stage = np.minimum(table.generated[rows] // every, self._estimates.refinements)
        stale = np.flatnonzero(stage > self._refined[rows])
        if len(stale):
            at, stages = rows[stale], stage[stale]
            keys = np.fromiter((table.at(row).key for row in at.tolist()), dtype=np.int64, count=len(at))
            self._refined[at] = stages
            table.lengths.put(at, self._estimates.refined(keys, stages), table.max_tokens[at])


def _row_of(landing: SimCall) -> int:
    """Row of a landing call on the engine that it comes from."""
    assert landing.origin is not None
    return landing.origin.row
