"""What the steps of a simulated engine work on, how long they take, and what comes of them.

Steps are composed as real engines do it: the head of the plan's order decodes, prompts of it are prefilled in whole
chunks under the plan's budget, KV is kept on a pause and computed again after an eviction. A run of steps that only
decode is one event: nobody in it ends or runs out of room before its last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import Capacity, FloatArray, IntArray
from paceline_core.engines.roofline import StepTimes
from paceline_core.tracker import SloTracker
from paceline_lab.sim.call import SimCall

NOBODY: Final = np.empty(0, dtype=np.int64)
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


class Steps:
    """Carries out plans on the rows of a live table: who is resident, who runs, what is written when."""

    def __init__(
        self, table: LiveTable[SimCall], tracker: SloTracker, capacity: Capacity, times: StepTimes
    ) -> None:
        self.capacity = capacity
        self.order: IntArray = NOBODY
        """Rows of the plan in force, most wanted first."""
        self.batch = capacity.max_batch
        """Most sequences in a step."""
        self.budget = 0
        """Most prompt tokens in a step."""
        self.kv_used = 0
        self.output_tokens = 0
        self.prefill_tokens = 0
        self.served: list[tuple[NDArray[np.int32], IntArray]] = []
        """(tenants, tokens) of the work done; its reader clears it."""
        self._table = table
        self._tracker = tracker
        self._times = times
        rows = table.rows
        self._true = np.zeros(rows, dtype=np.int64)
        self._target = np.zeros(rows, dtype=np.int64)
        self._resident = np.zeros(rows, dtype=bool)
        self._in_run = np.zeros(rows, dtype=bool)
        self._residents = 0
        self._run_rows: IntArray = NOBODY
        """Rows of the run set, sorted."""

    def admit(self, row: int, true_tokens: int) -> None:
        """A new row of the table, which will write `true_tokens`."""
        if row >= len(self._true):
            self._grow(self._table.rows)
        self._true[row] = true_tokens
        self._target[row] = self._table.prompt_tokens[row]
        self._resident[row] = False

    def replay(self, row: int) -> None:
        """Prompt and output so far of the row have to be prefilled before its next token."""
        self._target[row] = self._table.prompt_tokens[row] + self._table.generated[row]

    def prefill_owed(self, rows: IntArray) -> int:
        """Prompt tokens of the rows that are not prefilled."""
        return int(np.maximum(self._target[rows] - self._table.kv_tokens[rows], 0).sum())

    def over(self, rows: IntArray) -> IntArray:
        """Those of the rows that have written everything."""
        return rows[self._table.generated[rows] >= self._true[rows]]

    def running(self, rows: IntArray) -> NDArray[np.bool_]:
        """[N] Which of the rows are in the run set."""
        return self._in_run[rows]

    def done(self, run: Run, now_ms: float) -> int:
        """Steps of a run of decode steps that are over."""
        return int(np.searchsorted(self.ends(run)[: run.steps], now_ms, side="right"))

    def compose(self, now_ms: float, most_steps: int) -> Run | None:
        """The next step, or the next run of decode steps; None: nobody can run."""
        head = self.order[: self.batch]
        if not len(head):
            return None
        table = self._table
        kv = table.kv_tokens[head]
        waits = self._target[head] > kv
        room = (self.capacity.kv_tokens - self.kv_used) // len(head)
        if room < 1 or waits.any():
            return self._mixed(now_ms, head, waits)
        left = int((self._true[head] - table.generated[head]).min())
        steps = min(most_steps, room, left)
        context = float(kv.sum() + len(head))
        extra = self.mark_run_set(head)
        total = self._times.decode_run_ms(len(head), context, steps)
        run = Run(now_ms, now_ms + extra + total, steps, head, context, extra)
        run.step_ms = total if steps == 1 else self._times.decode_run_ms(len(head), context, 1)
        return run

    def _mixed(self, now_ms: float, head: IntArray, waits: NDArray[np.bool_]) -> Run | None:
        """One step that prefills, or for which room has to be made."""
        decodes = head[~waits]
        pieces = self._pieces(head[waits].tolist())
        kv = self._table.kv_tokens
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
        extra = self.mark_run_set(rows)
        step = self._times.step_ms(len(decodes), context, tokens, products, before, len(pieces))
        return Run(now_ms, now_ms + extra + step, 1, decodes, context, extra, pieces, step, tokens, products)

    def _pieces(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Prompt chunks of a step, as if there were room for all: whole chunks within the budget, one at least."""
        pieces: list[tuple[int, int]] = []
        taken = 0
        for row in rows:
            if taken and taken >= self.budget:
                break
            end = self._prefill_end(row, self.budget - taken)
            tokens = end - int(self._table.kv_tokens[row])
            if taken and taken + tokens > self.budget:
                continue
            pieces.append((row, end))
            taken += tokens
        return pieces

    def _prefill_end(self, row: int, budget: int) -> int:
        start, target, chunk = (
            int(self._table.kv_tokens[row]),
            int(self._target[row]),
            self.capacity.prefill_chunk_tokens,
        )
        end = start + max(budget, 1)
        if end >= target:
            return target
        return min(max(end // chunk, start // chunk + 1) * chunk, target)

    def _squeezed(self, head: Sequence[int]) -> tuple[IntArray, list[tuple[int, int]]]:
        """A step for which there is too little room: each in order takes it from those behind."""
        table = self._table
        rank = {row: place for place, row in enumerate(self.order.tolist())}
        decodes: list[int] = []
        pieces: list[tuple[int, int]] = []
        reserved = taken = 0
        for row in head:
            prefills = table.kv_tokens[row] < self._target[row]
            if prefills and taken and taken >= self.budget:
                continue
            if not self._resident[row]:
                if self._residents >= self.capacity.max_resident and not self._evict_behind(row, rank):
                    continue
                self._resident[row] = True
                self._residents += 1
            end = int(table.kv_tokens[row]) + 1
            if prefills:
                end = self._prefill_end(row, self.budget - taken)
            tokens = end - int(table.kv_tokens[row])
            if prefills and taken and taken + tokens > self.budget:
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
        residents = [r for r in self._table.live_rows().tolist() if self._resident[r]]
        victim = max(residents, key=lambda r: rank.get(r, behind), default=None)
        if victim is None or rank.get(victim, behind) <= rank.get(row, -1):
            return False
        self.evict(victim)
        return True

    def evict(self, row: int) -> None:
        """Drop the KV of a row: one prefill computes all its known positions again."""
        table = self._table
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

    def mark_run_set(self, rows: IntArray) -> float:
        """States follow the run set. Returns what a change of it costs, milliseconds."""
        now = np.sort(rows)
        before = self._run_rows
        if len(now) == len(before) and (now == before).all():
            return 0.0
        table = self._table
        self._run_rows = now
        self._in_run[before] = False
        self._in_run[now] = True
        left = before[~self._in_run[before]]
        left = left[(table.state[left] == _RUNNING) & table.alive[left]]
        for row in left.tolist():
            table.state[row] = _PAUSED
            table.at(row).preemptions += 1
            if not self.capacity.keeps_kv_when_paused:
                self.evict(row)
        table.state[now] = _RUNNING
        table.started[now] = True
        return self.capacity.run_set_change_cost_ms if len(before) and len(now) else 0.0

    def carry_out(self, run: Run, now_ms: float) -> IntArray:
        """KV and tokens of a run that is over; the rows that got tokens."""
        table, decodes, steps = self._table, run.decodes, run.steps
        made = decodes
        if len(decodes):
            first = table.generated[decodes]
            table.generated[decodes] = first + steps
            table.kv_tokens[decodes] += steps
            self.kv_used += steps * len(decodes)
            self.output_tokens += steps * len(decodes)
            self.served.append((table.tenant[decodes], np.full(len(decodes), steps)))
            if steps == 1:
                self._tracker.tokens(decodes, first, np.ones_like(first), now_ms)
            else:
                self._tracker.tokens_run(decodes, first, self.ends(run)[:steps])
        done: list[int] = []
        for row, end in run.prefills:
            tokens = end - int(table.kv_tokens[row])
            self.kv_used += tokens
            self.prefill_tokens += tokens
            self.served.append((table.tenant[row : row + 1].copy(), np.array([tokens])))
            table.kv_tokens[row] = end
            if end >= self._target[row]:
                done.append(row)
        if done:
            rows = np.asarray(done, dtype=np.int64)
            first = table.generated[rows]
            table.generated[rows] = first + 1
            self.output_tokens += len(rows)
            self._tracker.tokens(rows, first, np.ones_like(first), now_ms)
            made = np.concatenate([decodes, rows])
        return made

    def ends(self, run: Run) -> FloatArray:
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

    def leave(self, row: int) -> None:
        """A call is over: free what it holds."""
        table = self._table
        self.kv_used -= int(table.kv_tokens[row])
        if self._resident[row]:
            self._resident[row] = False
            self._residents -= 1
        table.remove(table.at(row).key)

    def _grow(self, rows: int) -> None:
        for name in ("_true", "_target", "_resident", "_in_run"):
            old = getattr(self, name)
            new = np.zeros(rows, dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
