"""What the executor reports, taken into the table and passed up."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import IntArray
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.ends import Ends
from paceline_scheduler.metrics import PREEMPTED, RESUMED
from paceline_scheduler.planner import Planner
from paceline_scheduler.state import SchedulerState
from paceline_scheduler.wire import run_state

_EVICTED = int(RunState.EVICTED)
_FIT_EVERY = 4
_FIT_ALWAYS_UNTIL = 256


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Rows of the attempts of a token batch. Kept from step to step: a steady run set names the same attempts."""

    version: int
    keys: tuple[int, ...]
    rows: IntArray
    """[R] Rows of the known ones."""
    known: NDArray[np.bool_]
    """[len(keys)]"""
    all_known: bool
    distinct: bool
    owners: tuple[str, ...]

    @classmethod
    def of(cls, table: LiveTable[Attempt], keys: tuple[int, ...]) -> Self:
        """Look `keys` up."""
        rows = table.rows_of(keys)
        known = rows >= 0
        found = rows[known]
        owners = dict.fromkeys(table.at(row).router_id for row in found.tolist())
        return cls(
            table.version, keys, found, known, bool(known.all()), len(set(keys)) == len(keys), tuple(owners)
        )


class Reports:
    """Takes reports in, in the order that the contract says: acceptances, steps, tokens, ends."""

    def __init__(self, state: SchedulerState, ends: Ends, planner: Planner) -> None:
        self._state = state
        self._ends = ends
        self._planner = planner
        self._steps = 0
        self._covered: list[Attempt] = []
        self._lookup = _Lookup(-1, (), np.empty(0, dtype=np.int64), np.empty(0, dtype=bool), True, True, ())

    def report(self, report: executor_pb2.Report) -> None:
        """One batch of reports."""
        state = self._state
        now = state.now_ms()
        for accepted in report.accepted:
            self.accepted(accepted)
        for step in report.steps:
            self._step(step, now)
        state.tenants.settle()
        for batch in report.republished:
            self._tokens(batch, now)
        for ended in report.ended:
            self._ended(ended)
        for ticket in report.tickets:
            self._ticket(ticket)
        for deviation in report.deviations:
            self._deviation(deviation, now)
        if report.HasField("kv"):
            state.engine.kv.CopyFrom(report.kv)
        state.mark_output()

    def accepted(self, accepted: attempt_pb2.AttemptAccepted) -> None:
        """The engine took an attempt in."""
        state = self._state
        attempt = state.table.get(accepted.attempt_key)
        if attempt is None:
            state.outbox.cancel(accepted.attempt_key)  # given up while it was on its way: it must not live on
            return
        if attempt.accepted:
            return
        attempt.take_in(accepted.prompt_ids)
        table = state.table
        table.prompt_tokens[attempt.row] = len(accepted.prompt_ids) // 4
        table.cached_tokens[attempt.row] = accepted.cached_tokens
        attempt.note(state.now_ms() - table.arrival_ms[attempt.row], "accepted")
        session = state.sessions.get(attempt.router_id)
        if session is not None:
            session.accepted(accepted)
        state.mark_dirty()

    def _step(self, step: executor_pb2.StepReport, now_ms: float) -> None:
        state = self._state
        state.engine.last_step_ms = now_ms
        state.engine.steps += 1
        self._fit(step)
        if step.progress_keys:
            self._progress(step, now_ms)
        if step.tokens.attempt_keys:
            self._tokens(step.tokens, now_ms, moved=bool(step.progress_keys))
        self._planner.stepped(step.plan_id)

    def _fit(self, step: executor_pb2.StepReport) -> None:
        fitter = self._state.fitter
        self._steps += 1
        if step.decode_batch and (self._steps <= _FIT_ALWAYS_UNTIL or self._steps % _FIT_EVERY == 0):
            fitter.observe_decode(step.decode_batch, step.decode_context_tokens, step.decode_ms)
        for tokens, context, ms in zip(
            step.prefill_tokens, step.prefill_context_tokens, step.prefill_call_ms, strict=False
        ):
            fitter.observe_prefill(tokens, context, ms)

    def _tokens(self, batch: attempt_pb2.TokenBatch, now_ms: float, *, moved: bool = True) -> None:
        """Tokens came out: count those that are new, and pass the batch up whole. `moved`: states may have changed."""
        table = self._state.table
        keys = tuple(batch.attempt_keys)
        lookup = self._lookup
        if lookup.version != table.version or lookup.keys != keys:
            lookup = self._lookup = _Lookup.of(table, keys)
        if not lookup.owners:
            return
        rows = lookup.rows
        first = np.fromiter(batch.first_indices, dtype=np.int64, count=len(keys))
        count = np.fromiter(batch.counts, dtype=np.int64, count=len(keys))
        if not lookup.all_known:
            first, count = first[lookup.known], count[lookup.known]
        if lookup.distinct:
            self._count(rows, first, count, now_ms, moved)
        else:  # folded reports: the same attempt in several rows
            for i in range(len(rows)):
                self._count(rows[i : i + 1], first[i : i + 1], count[i : i + 1], now_ms, moved)
        for router_id in lookup.owners:
            session = self._state.sessions.get(router_id)
            if session is not None:
                session.tokens(batch)
        if self._covered:  # their ends go up behind the tokens they waited for
            for attempt in self._covered:
                if attempt.held_end is not None:
                    self._ends.finish(attempt, attempt.held_end)
            self._covered.clear()

    def _count(self, rows: IntArray, first: IntArray, count: IntArray, now_ms: float, moved: bool) -> None:
        state = self._state
        table = state.table
        upto = first + count
        known = table.generated[rows]
        if (first != known).any():  # published again, or after a gap
            first = np.maximum(first, known)
            count = upto - first
            keep = count > 0
            self._filled(rows, upto)
            rows, first, count, upto = rows[keep], first[keep], count[keep], upto[keep]
            if not len(rows):
                return
        table.generated[rows] = upto
        state.tenants.served(rows, count)
        state.tokens += int(count.sum())
        kv_tokens = table.prompt_tokens[rows] + (upto - 1)
        table.kv_tokens[rows] = np.where(table.state[rows] == _EVICTED, 0, kv_tokens) if moved else kv_tokens
        table.last_token_ms[rows] = now_ms
        fresh = state.tracker.tokens(rows, first, count, now_ms)
        table.late_tokens[rows] = state.tracker.late_tokens(rows)
        for row in fresh.tolist():
            table.started[row] = True
            table.at(row).note(now_ms - table.arrival_ms[row], "first_token")
        limit = table.token_limit[rows]
        if ((upto >= limit) & (limit > 0)).any():
            state.mark_dirty()  # out of credit: its place is somebody else's
        if self._planner.isolating and (upto >= table.isolate_until[rows]).any():
            state.mark_dirty()

    def _filled(self, rows: IntArray, upto: IntArray) -> None:
        """Tokens that were asked for again are here: ends that waited for them may go up."""
        table = self._state.table
        for row, index in zip(rows.tolist(), upto.tolist(), strict=True):
            attempt = table.at(row)
            if attempt.missing_until and index >= attempt.missing_until:
                attempt.missing_until = 0
                if attempt.held_end is not None:
                    self._covered.append(attempt)

    def _progress(self, step: executor_pb2.StepReport, now_ms: float) -> None:
        """States and prefill moved."""
        state = self._state
        table = state.table
        rows: list[int] = []
        work: list[int] = []
        for key, kv_tokens, wire_state in zip(
            step.progress_keys, step.progress_kv_tokens, step.progress_states, strict=False
        ):
            attempt = table.get(key)
            stands = run_state(wire_state)
            if attempt is None or attempt.ended is not None or stands is None:
                continue
            row = attempt.row
            was_prefilling = table.kv_tokens[row] < table.prompt_tokens[row]
            if kv_tokens > table.kv_tokens[row] and was_prefilling:
                prefilled = min(kv_tokens, int(table.prompt_tokens[row])) - int(table.kv_tokens[row])
                rows.append(row)
                work.append(prefilled)
            table.kv_tokens[row] = kv_tokens
            if was_prefilling and kv_tokens >= table.prompt_tokens[row]:
                state.mark_dirty()
            self.moved_to(attempt, stands, now_ms)
            if attempt.lands_at_tokens and attempt.accepted:
                self._landing(attempt, kv_tokens)
        if rows:
            state.tenants.served(np.asarray(rows), np.asarray(work))

    def _landing(self, attempt: Attempt, kv_tokens: int) -> None:
        """Tell its owner once it has taken in what it came with. The last id is fed with the first new token."""
        ready = int(self._state.table.prompt_tokens[attempt.row]) + attempt.lands_at_tokens - 1
        session = self._state.sessions.get(attempt.router_id)
        if kv_tokens >= ready and session is not None:
            attempt.lands_at_tokens = 0
            session.landed(attempt.key)

    def moved_to(self, attempt: Attempt, stands: RunState, now_ms: float) -> None:
        """The engine says where the attempt stands."""
        table = self._state.table
        row = attempt.row
        if stands is RunState.RUNNING:
            table.started[row] = True
        before = RunState(int(table.state[row]))
        if before is not stands:
            out_of_credit = 0 < table.token_limit[row] <= table.generated[row]
            stopped = before is RunState.RUNNING and not out_of_credit
            if stopped or (before is RunState.PAUSED and stands is RunState.EVICTED):
                self._state.counts[PREEMPTED + stands.name.lower()] += 1
            elif before in (RunState.PAUSED, RunState.EVICTED) and stands is RunState.RUNNING:
                self._state.counts[RESUMED + before.name.lower()] += 1
            table.state[row] = stands
            attempt.note(now_ms - table.arrival_ms[row], stands.name.lower())

    def _ended(self, ended: attempt_pb2.AttemptEnded) -> None:
        state = self._state
        attempt = state.table.get(ended.attempt_key)
        if attempt is None:
            state.outbox.release(ended.attempt_key)  # forgotten here: nothing waits for it
            return
        if attempt.ended is None and attempt.missing_until > state.table.generated[attempt.row]:
            attempt.held_end = ended
            return
        self._ends.finish(attempt, ended)

    def _ticket(self, issued: executor_pb2.IssuedTicket) -> None:
        attempt = self._state.table.get(issued.attempt_key)
        session = None if attempt is None else self._state.sessions.get(attempt.router_id)
        if session is None:
            return
        ticket = scheduler_pb2.MoveTicket(attempt_key=issued.attempt_key)
        if issued.HasField("failure"):
            ticket.failure.CopyFrom(issued.failure)
        else:
            ticket.ticket.CopyFrom(issued.ticket)
        session.ticket(ticket)

    def _deviation(self, deviation: executor_pb2.Deviation, now_ms: float) -> None:
        state = self._state
        name = executor_pb2.DeviationReason.Name(deviation.reason).removeprefix("DEVIATION_REASON_").lower()
        state.counts[f"deviation_{name}"] += 1
        attempt = state.table.get(deviation.attempt_key)
        if attempt is not None:
            attempt.note(now_ms - state.table.arrival_ms[attempt.row], "deviation", name)
