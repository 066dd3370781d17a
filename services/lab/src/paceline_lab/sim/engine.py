"""One simulated engine under one batch policy: what it plans, what its steps do, and how long they take.

Steps are composed as real engines do it: the head of the plan's order decodes, prompts of it are prefilled in whole
chunks under the plan's budget, KV is kept on a pause and computed again after an eviction. A run of steps that only
decode is one event: nobody in it ends, runs out of room, or is to be planned anew before its last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.fairness import TenantAccounts
from paceline_core.batch.planning import decide
from paceline_core.batch.policy import BatchPolicy, EstimateUse
from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import FloatArray, IntArray
from paceline_core.engine_model import EngineModelFitter
from paceline_core.engines.roofline import StepTimes, step_times
from paceline_core.tracker import SloTracker
from paceline_lab.sim.call import SimCall
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import Estimates
from paceline_lab.sim.fitting import Fitting

_PLAN_LENGTH: Final = 1024
_WAIT_MS: Final = 20.0
"""A policy that runs nobody although requests live is asked again after this."""
_LONGEST_RUN: Final = 4096
_NONE: Final = np.empty(0, dtype=np.int64)
_RUNNING, _PAUSED, _EVICTED = int(RunState.RUNNING), int(RunState.PAUSED), int(RunState.EVICTED)


@dataclass(slots=True)
class Run:
    """Steps under way: one with prefill, or any number that only decode."""

    start_ms: float
    end_ms: float
    steps: int
    decodes: IntArray
    context_tokens: float
    """Sum of contexts that its first step decodes."""
    extra_ms: float = 0.0
    """What the change of the run set costs, in its first step."""
    prefills: Sequence[tuple[int, int]] = ()
    """(row, position up to which its KV will be there)."""
    step_ms: float = 0.0
    """First step, without the extra."""
    prefill_tokens: int = 0
    products: float = 0.0
    """Sum over prefill chunks of n * (context before it + n/2)."""
    ends_ms: FloatArray | None = None
    """When its steps end, once somebody asked."""


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
        self.output_tokens = 0
        self.prefill_tokens = 0
        self.busy_ms = 0.0
        self.kv_used = 0
        self._policy = policy
        self._estimates = estimates
        self._truth = true_tokens
        self._longest_run = _LONGEST_RUN if skip and not replan_every_step else 1
        self._every_step = replan_every_step
        self._times: StepTimes = step_times(spec.profile)
        self._fitting = Fitting(self.fitter, self._times)
        self._true = np.zeros(64, dtype=np.int64)
        self._target = np.zeros(64, dtype=np.int64)
        self._resident = np.zeros(64, dtype=bool)
        self._refined = np.zeros(64, dtype=np.int64)
        self._in_run = np.zeros(64, dtype=bool)
        self._residents = 0
        self._order: IntArray = _NONE
        self._batch = spec.max_batch
        self._budget = 0
        self._valid_left = 0
        self._planned_step = -1
        self._dirty = True
        self._observe = True
        self._run_rows: IntArray = _NONE
        """Rows of the run set, sorted."""
        self._cancels: list[SimCall] = []
        self._accounts = TenantAccounts()
        self._served: list[tuple[NDArray[np.int32], IntArray]] = []
        """(tenants, tokens) of the work since the last plan."""
        self.given_up: list[SimCall] = []
        """Calls that the policy shed since the owner last looked."""

    # -- what the simulator asks ---------------------------------------------------------------------------------

    def add(
        self, call: SimCall, now_ms: float, call_due_ms: float, task_due_ms: float, rest_tokens: float
    ) -> None:
        """A call arrives: it takes part in the next plan."""
        table = self.table
        key = call.key
        row = table.add(
            call, self._estimates.initial[key].astype(np.float64), int(self._estimates.limit[key])
        )
        if row >= len(self._true):
            self._grow(table.rows)
        call.engine = self.number
        table.arrival_ms[row] = now_ms
        table.prompt_tokens[row] = self._target[row] = call.call.prompt_tokens
        table.call_due_ms[row] = call_due_ms
        table.task_due_ms[row] = task_due_ms
        table.task_rest_tokens[row] = rest_tokens
        table.priority[row] = call.job.job.priority
        self._true[row] = self._truth[key]
        self._resident[row] = False
        self._refined[row] = 0
        self.tracker.begin(row, call.slo, now_ms)
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
            whole = self._steps_done(run, now_ms)
            if whole + 1 < run.steps:
                run.steps = whole + 1
                run.end_ms = float(self._step_ends(run)[whole])
        return run.end_ms

    def _steps_done(self, run: Run, now_ms: float) -> int:
        """Steps of a run of decode steps that are over."""
        return int(np.searchsorted(self._step_ends(run)[: run.steps], now_ms, side="right"))

    def cancel(self, call: SimCall) -> None:
        """End a call before its time: with the step under way, or before the next plan."""
        self._cancels.append(call)
        self._dirty = True

    @property
    def estimate_use(self) -> EstimateUse:
        """Whose length estimates its policy is given."""
        return self._policy.estimates

    def states(self) -> IntArray:
        """[EVICTED + 1] Live calls by run state."""
        rows = self.table.live_rows()
        return np.bincount(self.table.state[rows], minlength=_EVICTED + 1)[: _EVICTED + 1]

    def prefill_owed(self) -> int:
        """Prompt tokens of live calls that are not prefilled."""
        rows = self.table.live_rows()
        return int(np.maximum(self._target[rows] - self.table.kv_tokens[rows], 0).sum())

    def written(self, now_ms: float) -> tuple[IntArray, IntArray]:
        """[N] Rows of live calls, and [N] their output tokens so far, those of the run under way included."""
        rows = self.table.live_rows()
        generated = self.table.generated[rows].copy()
        run = self.run
        if run is not None and len(run.decodes) and not run.prefills:
            generated[self._in_run[rows]] += self._steps_done(run, now_ms)
        return rows, generated

    def output_owed(self, now_ms: float) -> float:
        """Expected output tokens of live calls still to come."""
        rows, generated = self.written(now_ms)
        return float(self.table.lengths.mean_left(rows, generated).sum())

    def begin(self, now_ms: float) -> float | None:
        """Begin what comes next; when it ends, or None when there is nothing to do until a call arrives."""
        self._drop_cancelled(now_ms)
        if not self.table.live:
            self._mark_run_set(_NONE)
            self._order = _NONE
            return None
        if self._dirty or self._valid_left <= 0 or self._every_step:
            self._plan(now_ms)
        run = self._compose(now_ms)
        if run is None and not self._dirty:
            self._plan(now_ms)
            run = self._compose(now_ms)
        if run is None:
            self._mark_run_set(_NONE)
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
        made = self._move(run, now_ms)
        ended: list[SimCall] = []
        if len(made):
            table = self.table
            table.last_token_ms[made] = now_ms
            table.late_tokens[made] = self.tracker.late_tokens(made)
            over = made[table.generated[made] >= self._true[made]]
            for row in over.tolist():
                call = table.at(row)
                call.outcome = self.tracker.end(row, now_ms, completed=True)
                self._leave(row)
                ended.append(call)
        self._drop_cancelled(now_ms)
        return ended

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
        self._order = rows[decision.order]
        self._batch = min(decision.max_batch or self.spec.max_batch, self.spec.max_batch)
        self._budget = decision.prefill_budget_tokens
        self._valid_left = max(1, decision.valid_for_steps)
        for row in rows[decision.evict].tolist():
            self._evict(row)
        for row in rows[decision.shed].tolist():
            call = table.at(row)
            call.outcome = self.tracker.end(row, now_ms, completed=False)
            self._leave(row)
            self.given_up.append(call)
            self._dirty = False

    def _settle_tenants(self, rows: IntArray) -> None:
        """Book the work since the last plan to the tenants it was for."""
        table = self.table
        if self._served:
            tenants, tokens = (np.concatenate(column) for column in zip(*self._served, strict=True))
            self._accounts.serve(table.tenant[rows], tenants, tokens)
            self._served.clear()
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

    # -- steps -----------------------------------------------------------------------------------------------------

    def _compose(self, now_ms: float) -> Run | None:
        """What the next step, or the next run of decode steps, works on."""
        head = self._order[: self._batch]
        if not len(head):
            return None
        table = self.table
        kv = table.kv_tokens[head]
        waits = self._target[head] > kv
        room = (self.capacity.kv_tokens - self.kv_used) // len(head)
        if room < 1 or waits.any():
            return self._mixed(now_ms, head, waits)
        left = int((self._true[head] - table.generated[head]).min())
        steps = min(self._longest_run, self._valid_left, room, left)
        context = float(kv.sum() + len(head))
        extra = self._mark_run_set(head)
        total = self._times.decode_run_ms(len(head), context, steps)
        run = Run(now_ms, now_ms + extra + total, steps, head, context, extra)
        run.step_ms = total if steps == 1 else self._times.decode_run_ms(len(head), context, 1)
        return run

    def _mixed(self, now_ms: float, head: IntArray, waits: NDArray[np.bool_]) -> Run | None:
        """One step that prefills, or for which room has to be made."""
        decodes = head[~waits]
        pieces = self._pieces(head[waits].tolist())
        kv = self.table.kv_tokens
        tokens = sum(end - int(kv[row]) for row, end in pieces)
        admitted = sum(not self._resident[row] for row, _ in pieces)
        if (
            self.kv_used + tokens + len(decodes) > self.capacity.kv_tokens
            or self._residents + admitted > self.capacity.max_resident
        ):
            decodes, pieces = self._squeezed(head.tolist())
        if not pieces and not len(decodes):
            return None
        tokens, before, products = 0, 0, 0.0
        for row, end in pieces:
            if not self._resident[row]:
                self._resident[row] = True
                self._residents += 1
            start = int(kv[row])
            count = end - start
            tokens += count
            before += start
            products += count * (start + count / 2)
        context = float(kv[decodes].sum() + len(decodes))
        rows = np.concatenate([decodes, np.fromiter((row for row, _ in pieces), np.int64, len(pieces))])
        extra = self._mark_run_set(rows)
        step = self._times.step_ms(len(decodes), context, tokens, products, before, len(pieces))
        return Run(now_ms, now_ms + extra + step, 1, decodes, context, extra, pieces, step, tokens, products)

    def _pieces(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Prompt chunks of a step, as if there were room for all: whole chunks within the budget, one at least."""
        pieces: list[tuple[int, int]] = []
        taken = 0
        for row in rows:
            if taken and taken >= self._budget:
                break
            end = self._prefill_end(row, self._budget - taken)
            tokens = end - int(self.table.kv_tokens[row])
            if taken and taken + tokens > self._budget:
                continue
            pieces.append((row, end))
            taken += tokens
        return pieces

    def _prefill_end(self, row: int, budget: int) -> int:
        start, target, chunk = (
            int(self.table.kv_tokens[row]),
            int(self._target[row]),
            self.capacity.prefill_chunk_tokens,
        )
        end = start + max(budget, 1)
        if end >= target:
            return target
        return min(max(end // chunk, start // chunk + 1) * chunk, target)

    def _squeezed(self, head: Sequence[int]) -> tuple[IntArray, list[tuple[int, int]]]:
        """A step for which there is too little room: each in order takes it from those behind."""
        table = self.table
        rank = {row: place for place, row in enumerate(self._order.tolist())}
        decodes: list[int] = []
        pieces: list[tuple[int, int]] = []
        reserved = taken = 0
        for row in head:
            prefills = table.kv_tokens[row] < self._target[row]
            if prefills and taken and taken >= self._budget:
                continue
            if not self._resident[row]:
                if self._residents >= self.capacity.max_resident and not self._evict_behind(row, rank):
                    continue
                self._resident[row] = True
                self._residents += 1
            end = int(table.kv_tokens[row]) + 1
            if prefills:
                end = self._prefill_end(row, self._budget - taken)
            tokens = end - int(table.kv_tokens[row])
            if prefills and taken and taken + tokens > self._budget:
                continue
            while self.kv_used + reserved + tokens > self.capacity.kv_tokens:
                if not self._evict_behind(row, rank):
                    break
            else:
                reserved += tokens
                if prefills:
                    pieces.append((row, end))
                    taken += tokens
                else:
                    decodes.append(row)
        return np.asarray(decodes, dtype=np.int64), pieces

    def _evict_behind(self, row: int, rank: dict[int, int]) -> bool:
        """Evict the least wanted resident behind the row: unlisted ones first, then from the end of the plan."""
        behind = len(rank)
        residents = [r for r in self.table.live_rows().tolist() if self._resident[r]]
        victim = max(residents, key=lambda r: rank.get(r, behind), default=None)
        if victim is None or rank.get(victim, behind) <= rank.get(row, -1):
            return False
        self._evict(victim)
        return True

    def _evict(self, row: int) -> None:
        """Drop the KV of a row: one prefill computes all its known positions again."""
        table = self.table
        if not self._resident[row]:
            return
        call = table.at(row)
        kv = int(table.kv_tokens[row])
        call.recomputed_tokens += kv
        if table.state[row] == _RUNNING:
            call.preemptions += 1
        self.kv_used -= kv
        self._resident[row] = False
        self._residents -= 1
        table.kv_tokens[row] = 0
        table.state[row] = _EVICTED
        self._target[row] = table.prompt_tokens[row] + table.generated[row]

    def _mark_run_set(self, rows: IntArray) -> float:
        """States follow the run set. Returns what a change of it costs, milliseconds."""
        now = np.sort(rows)
        before = self._run_rows
        if len(now) == len(before) and (now == before).all():
            return 0.0
        table = self.table
        self._run_rows = now
        self._in_run[before] = False
        self._in_run[now] = True
        left = before[~self._in_run[before]]
        left = left[(table.state[left] == _RUNNING) & table.alive[left]]
        for row in left.tolist():
            table.state[row] = _PAUSED
            table.at(row).preemptions += 1
            if not self.capacity.keeps_kv_when_paused:
                self._evict(row)
        table.state[now] = _RUNNING
        table.started[now] = True
        return self.capacity.run_set_change_cost_ms if len(before) and len(now) else 0.0

    def _move(self, run: Run, now_ms: float) -> IntArray:
        """KV and tokens of a run that is over; the rows that got tokens."""
        table, decodes, steps = self.table, run.decodes, run.steps
        made = decodes
        if len(decodes):
            first = table.generated[decodes]
            table.generated[decodes] = first + steps
            table.kv_tokens[decodes] += steps
            self.kv_used += steps * len(decodes)
            self.output_tokens += steps * len(decodes)
            self._served.append((table.tenant[decodes], np.full(len(decodes), steps)))
            if steps == 1:
                self.tracker.tokens(decodes, first, np.ones_like(first), now_ms)
            else:
                self.tracker.tokens_run(decodes, first, self._step_ends(run)[:steps])
        done: list[int] = []
        for row, end in run.prefills:
            tokens = end - int(table.kv_tokens[row])
            self.kv_used += tokens
            self.prefill_tokens += tokens
            self._served.append((table.tenant[row : row + 1].copy(), np.array([tokens])))
            table.kv_tokens[row] = end
            if end >= self._target[row]:
                done.append(row)
        if done:
            rows = np.asarray(done, dtype=np.int64)
            first = table.generated[rows]
            table.generated[rows] = first + 1
            self.output_tokens += len(rows)
            self.tracker.tokens(rows, first, np.ones_like(first), now_ms)
            made = np.concatenate([decodes, rows])
            self._dirty = True
        return made

    def _step_ends(self, run: Run) -> FloatArray:
        """[at least steps] When each step of a run of decode steps ends."""
        if run.ends_ms is None:
            batch, times = len(run.decodes), self._times
            contexts = run.context_tokens + batch * np.arange(run.steps)
            if times.linear is not None:
                each = times.decode_run_ms(batch, 0.0, 1) + times.linear.c_ms * contexts
            else:
                memory = np.maximum(times.weights_ms + times.kv_ms * contexts, times.token_ms * batch)
                each = times.base_ms + memory + times.attention_ms * contexts
            run.ends_ms = run.start_ms + run.extra_ms + np.cumsum(each)
        return run.ends_ms

    def _leave(self, row: int) -> None:
        """A call is over: free what it holds."""
        table = self.table
        self.kv_used -= int(table.kv_tokens[row])
        if self._resident[row]:
            self._resident[row] = False
            self._residents -= 1
        table.remove(table.at(row).key)
        self._dirty = True

    def _grow(self, rows: int) -> None:
        for name in ("_true", "_target", "_resident", "_refined", "_in_run"):
            old = getattr(self, name)
            new = np.zeros(rows, dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        self.tracker.grow(rows)
