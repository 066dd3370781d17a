"""The agent's loop: keeps what is in the engine equal to what the newest plan wants, as far as a frame allows.

A turn looks at the plan and at what is in the engine. Whoever is wanted and not in it is submitted while there is room;
whoever is in it and not wanted is aborted, once a frame at most (or held, where the engine can hold). An attempt that
left comes back as a new request of prompt and output ids: the engine's cache makes that cheap. Everything here runs
under the lock that callers of the engine share.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from paceline_executor.contract import (
    ENGINE_FAILED,
    AttemptState,
    DeviationReason,
    EndReason,
    KvUse,
    Plan,
)
from paceline_executor.frames.attempt import Attempt, LegState
from paceline_executor.frames.backend import Backend, BackendGone, Holder
from paceline_executor.frames.book import Book
from paceline_executor.frames.choice import Reserve, displaced, first_runnable, leaving
from paceline_executor.frames.config import FrameConfig
from paceline_executor.frames.legs import Legs
from paceline_executor.frames.reporting import Reporter
from paceline_executor.frames.table import AttemptTable
from paceline_executor.frames.tasks import LoopTasks

_log = logging.getLogger(__name__)


class FrameLoop:
    """Submits and aborts. `lock` guards everything; what talks to the back end runs on the event loop alone.

    `on_end` is called under it at each end.
    """

    def __init__(
        self,
        config: FrameConfig,
        backend: Backend,
        holder: Holder | None,
        table: AttemptTable,
        reporter: Reporter,
        lock: AbstractContextManager[bool],
        on_end: Callable[[], None],
        counters: Counter[str],
        eos_token_id: int,
    ) -> None:
        self._config = config
        self._backend = backend
        self._block_tokens = max(backend.facts.tokens_per_block, 1)
        self._holder = holder
        self._reserve = Reserve(
            config.reserve_tokens, config.longest_reserve_tokens, self._block_tokens, by_credit=holder is None
        )
        self._table = table
        self._reporter = reporter
        self._lock = lock
        self._counters = counters
        self.tasks = LoopTasks(self._task_failed)
        """What runs on the loop."""
        self._loop = self.tasks.loop
        self._book = Book(table, reporter, self.flush_soon, on_end)
        self._legs = Legs(
            backend, self._book, self.tasks, lock, counters, eos_token_id, holds=holder is not None,
            on_change=self.touch,
        )  # fmt: skip
        self.legs = self._legs.by_key
        """Every stay in the engine that is not over, by attempt key."""
        self._turn_due = self._flush_due = False
        self._plan: Plan | None = None
        self._order: list[Attempt] = []
        self._stale = False
        self._frame_ends_s = 0.0
        self._iterations = 0
        self._timer: asyncio.TimerHandle | None = None
        self._queued = 0
        self.alive = True

    # --- from any thread, under the lock ---------------------------------------------------------------------

    def set_plan(self, plan: Plan | None) -> None:
        """Replace the plan; None: nothing runs, and that at once."""
        self._plan = plan
        if plan is not None:
            self._reporter.plan_id = plan.plan_id
            for key in plan.evict:
                attempt = self._table.get_live(key)
                if attempt is not None:
                    self._evict(attempt)
        self.touch()

    def touch(self) -> None:
        """Plan or attempts changed: look again in the next turn."""
        self._stale = True
        if not self._turn_due:
            self._turn_due = True
            self.tasks.soon(self._turn)

    def flush_soon(self) -> None:
        """There is something to report."""
        if not self._flush_due:
            self._flush_due = True
            self.tasks.soon(self._flush)

    def cancel(self, attempt: Attempt) -> None:
        """End an attempt: at once if the engine does not have it, else when the engine says so."""
        attempt.cancelled = True
        state = self.legs.get(attempt.key)
        if state is None:
            self._book.bury(attempt, EndReason.CANCELLED)
        else:
            self._legs.abort_soon(state)
        self.touch()

    def fail(self, attempt: Attempt, reason: str, message: str, *, retryable: bool = False) -> None:
        """End an attempt that cannot go on; what the engine still has of it is aborted."""
        state = self.legs.get(attempt.key)
        if state is not None:
            self._legs.abort_soon(state)
        self._book.bury(attempt, EndReason.FAILED, reason, message, retryable=retryable)
        self.touch()

    def end(self, attempt: Attempt) -> None:
        """Close an attempt whose answer came to its end without the engine."""
        if attempt.reason is not None:
            self._book.bury(attempt, attempt.reason)

    def kv_use(self) -> KvUse:
        """KV by the agent's own account."""
        return self._book.kv_use()

    def flush(self) -> None:
        """Report now what is to be reported."""
        self._book.flush()

    def die(self, message: str) -> None:
        """Take the engine out: every attempt ends as the engine's failure, not its own."""
        if not self.alive:
            return
        self.alive, self._legs.closed = False, True
        self._counters["alarms"] += 1
        _log.error("the engine is taken out: %s", message)
        self.flush()
        for attempt in self._table.live_attempts():
            self._book.bury(attempt, EndReason.FAILED, ENGINE_FAILED, message, retryable=True)
        self.flush()
        self.tasks.soon(self._stop_tasks)

    def overdue(self, now_s: float) -> str:
        """What should have happened by now and has not, or ""."""
        return self._legs.overdue(now_s, self._config.abort_timeout_s, self._config.progress_timeout_s)

    # --- on the event loop -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read the engine's iterations."""
        if self._backend.facts.has_rows:
            self.tasks.spawn(self._read_rows(), "iteration-rows")

    async def stop(self) -> None:
        """End all tasks."""
        self._stop_timer()
        await self.tasks.stop()

    def _turn(self) -> None:
        with self._lock:
            self._turn_due = False
            if not self.alive:
                return
            if self._stale:
                self._stale = False
                self._adopt()
            try:
                self._reconcile()
            except BackendGone as error:
                self.die(str(error))
            if self._reporter.pending:
                self.flush_soon()

    def _flush(self) -> None:
        with self._lock:
            self._flush_due = False
            self.flush()

    def _adopt(self) -> None:
        plan = self._plan
        self._order = []
        if plan is None:
            return
        limits = plan.token_limits or (0,) * len(plan.attempt_keys)
        for key, limit in zip(plan.attempt_keys, limits, strict=True):
            attempt = self._table.get_live(key)
            if attempt is not None:
                attempt.token_limit = limit
                self._order.append(attempt)

    def _reconcile(self) -> None:
        plan = self._plan
        room = self._config.max_batch if plan is None else (plan.max_batch or self._config.max_batch)
        room = min(room, self._config.max_batch)
        wanted = first_runnable(self._order, room)
        keys = {attempt.key for attempt in wanted}
        if self._holder is None:
            self._take_out(leaving(self.legs, keys))
            self._admit(wanted, room)
        else:
            self._make_places(wanted)
            self._admit(wanted, self._config.max_resident)
            self._hold(self._holder, wanted, room)
        for state in self.legs.values():
            if state.aborted_s is None:
                running = state.attempt.key in keys
                self._book.set_state(state.attempt, AttemptState.RUNNING if running else AttemptState.PAUSED)

    def _take_out(self, unwanted: Sequence[LegState]) -> None:
        """Abort who is not wanted, at a frame's end; at once without a plan. The pinned stay, and that is said."""
        movable = []
        for state in unwanted:
            if state.attempt.pinned:
                self._counters["pinned"] += 1
                self._reporter.deviation(state.attempt, DeviationReason.UNSUPPORTED)
            else:
                movable.append(state)
        if not movable:
            return
        now_s = self._loop.time()
        if (
            self._plan is not None
            and now_s < self._frame_ends_s
            and self._iterations < self._config.frame_iterations
        ):
            if self._timer is None:
                self._timer = self._loop.call_at(self._frame_ends_s, self._frame_over)
            return
        self._frame_ends_s = now_s + self._config.frame_ms / 1e3
        self._iterations = 0
        for state in movable:
            self._counters["preemptions"] += 1
            self._legs.abort(state)

    def _frame_over(self) -> None:
        self._timer = None
        with self._lock:
            self.touch()

    def _make_places(self, wanted: Sequence[Attempt]) -> None:
        """Where requests are held, places run out: the least wanted behind a wanted one goes."""
        for state in displaced(self._order, wanted, self.legs, self._config.max_resident):
            self._reporter.deviation(state.attempt, DeviationReason.NO_SLOT)
            self._legs.abort(state)

    def _hold(self, holder: Holder, wanted: Sequence[Attempt], room: int) -> None:
        order = []
        for attempt in wanted:
            state = self.legs.get(attempt.key)
            if state is not None and state.aborted_s is None:
                limit = attempt.token_limit - state.base if attempt.token_limit and not attempt.pinned else 0
                order.append((state.leg.engine_id, limit))
        holder.post(order, room)

    def _admit(self, wanted: Sequence[Attempt], places: int) -> None:
        """Submit who is wanted and not there, in order, while there is room: nobody overtakes for want of memory."""
        entering = [(rank, attempt) for rank, attempt in enumerate(wanted) if attempt.key not in self.legs]
        if not entering:
            return
        reserved = sum(
            self._blocks(len(s.attempt.prompt_ids) + s.base + s.max_tokens) for s in self.legs.values()
        )
        crowded = len(self._order) > len(wanted)
        for rank, attempt in entering:
            if len(self.legs) >= places or self._queued > self._config.max_queued:
                return
            tokens = self._reserve.tokens(attempt)
            needed = self._blocks(attempt.known_tokens + tokens)
            if self.legs and reserved + needed > self._blocks(self._config.kv_capacity_tokens):
                return
            reserved += needed
            self._legs.submit(attempt, tokens, 1.0 - rank / (len(wanted) + 1), crowded=crowded)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def _evict(self, attempt: Attempt) -> None:
        state = self.legs.get(attempt.key)
        self._book.set_cached(attempt, 0)
        if state is not None:
            attempt.state = AttemptState.EVICTED
            self._legs.abort_soon(state)
        elif attempt.state is AttemptState.PAUSED:
            self._book.set_state(attempt, AttemptState.EVICTED)

    async def _read_rows(self) -> None:
        async for row in self._backend.rows():
            with self._lock:
                self._iterations += 1
                queued, self._queued = self._queued, row.queued
                self._legs.moved = True
                self._reporter.row(row)
                self.flush_soon()
                if queued > self._config.max_queued >= row.queued:
                    self.touch()

    def _task_failed(self, error: BaseException) -> None:
        with self._lock:
            self.die(f"{type(error).__name__}: {error}")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_tasks(self) -> None:
        self._stop_timer()
        self.tasks.cancel()
