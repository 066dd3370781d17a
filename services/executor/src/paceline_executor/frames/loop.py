"""The agent's loop: keeps what is in the engine equal to what the newest plan wants, as far as a frame allows.

A turn looks at the plan and at what is in the engine. Whoever is wanted and not in it is submitted while there is room;
whoever is in it and not wanted is aborted, once a frame at most (or held, where the engine can hold). An attempt that
left comes back as a new request of prompt and output ids: the engine's cache makes that cheap. Everything here runs
under the lock that callers of the engine share.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from paceline_executor.contract import (
    ENGINE_FAILED,
    AttemptState,
    DeviationReason,
    EndReason,
    KvUse,
    Plan,
)
from paceline_executor.frames.attempt import Attempt, LegState
from paceline_executor.frames.backend import (
    Backend,
    BackendGone,
    Holder,
    LegEnd,
    LegFailed,
    LegItem,
    LegRefused,
    LegRequest,
)
from paceline_executor.frames.choice import (
    Reserve,
    displaced,
    ends_early,
    first_runnable,
    leaving,
    sampling_of_leg,
)
from paceline_executor.frames.config import FrameConfig
from paceline_executor.frames.reporting import Reporter
from paceline_executor.frames.table import AttemptTable

_log = logging.getLogger(__name__)
_MAX_LEG_FAILURES = 3


class FrameLoop:
    """Submits and aborts. `lock` guards everything; what talks to the back end runs on the event loop alone."""

    def __init__(
        self,
        config: FrameConfig,
        backend: Backend,
        holder: Holder | None,
        table: AttemptTable,
        reporter: Reporter,
        lock: threading.Condition,
        counters: Counter[str],
        eos_token_id: int,
    ) -> None:
        self._eos_token_id = eos_token_id
        self._config = config
        self._backend = backend
        self._facts = backend.facts
        self._holder = holder
        self._reserve = Reserve(
            config.reserve_tokens,
            config.longest_reserve_tokens,
            max(backend.facts.tokens_per_block, 1),
            by_credit=holder is None,
        )
        self._table = table
        self._reporter = reporter
        self._lock = lock
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn_due = self._flush_due = False
        self._plan: Plan | None = None
        self._order: list[Attempt] = []
        self._stale = False
        self._frame_ends_s = 0.0
        self._iterations = 0
        self._timer: asyncio.TimerHandle | None = None
        self._queued = 0
        self._cached_tokens = 0
        self._failures: Counter[int] = Counter()
        self.legs: dict[int, LegState] = {}
        """Every stay that is not over, by attempt key, aborted ones included."""
        self.progress_s = self._loop.time()
        """When the engine last did something, or had nothing to do."""
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
            self._soon(self._turn)

    def flush_soon(self) -> None:
        """There is something to report."""
        if not self._flush_due:
            self._flush_due = True
            self._soon(self._flush)

    def cancel(self, attempt: Attempt) -> None:
        """End an attempt: at once if the engine does not have it, else when the engine says so."""
        attempt.cancelled = True
        state = self.legs.get(attempt.key)
        if state is None:
            self._bury(attempt, EndReason.CANCELLED)
        else:
            self._soon(lambda: self._abort(state))
        self.touch()

    def fail(self, attempt: Attempt, reason: str, message: str, *, retryable: bool = False) -> None:
        """End an attempt that cannot go on; what the engine still has of it is aborted."""
        state = self.legs.get(attempt.key)
        if state is not None:
            self._soon(lambda: self._abort(state))
        self._bury(attempt, EndReason.FAILED, reason, message, retryable=retryable)
        self.touch()

    def end(self, attempt: Attempt) -> None:
        """Close an attempt whose answer came to its end without the engine."""
        if attempt.reason is not None:
            self._bury(attempt, attempt.reason)

    def kv_use(self) -> KvUse:
        """KV by the agent's own account."""
        used = sum(state.attempt.known_tokens - 1 for state in self.legs.values())
        return KvUse(used, self._cached_tokens, len(self.legs), self._table.live)

    def flush(self) -> None:
        """Report now what is to be reported."""
        if self._reporter.pending:
            self._reporter.flush(self.kv_use())

    def die(self, message: str) -> None:
        """Take the engine out: every attempt ends as the engine's failure, not its own."""
        if not self.alive:
            return
        self.alive = False
        self._counters["alarms"] += 1
        _log.error("the engine is taken out: %s", message)
        self.flush()
        for attempt in self._table.live_attempts():
            self._bury(attempt, EndReason.FAILED, ENGINE_FAILED, message, retryable=True)
        self.flush()
        self._soon(self._stop_tasks)

    # --- on the event loop -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read the engine's iterations."""
        if self._facts.has_rows:
            self._spawn(self._read_rows(), "iteration-rows")

    async def stop(self) -> None:
        """End all tasks."""
        tasks = list(self._tasks)
        self._stop_tasks()
        await asyncio.gather(*tasks, return_exceptions=True)

    def overdue(self, now_s: float) -> str:
        """What should have happened by now and has not, or ""."""
        for state in self.legs.values():
            waited_s = 0.0 if state.aborted_s is None else now_s - state.aborted_s
            if waited_s > self._config.abort_timeout_s:
                return f"attempt {state.attempt.key} was aborted {waited_s:.1f} s ago and has not ended"
        if not any(s.aborted_s is None and s.attempt.runnable() for s in self.legs.values()):
            self.progress_s = now_s
        elif now_s - self.progress_s > self._config.progress_timeout_s:
            return f"no progress for {now_s - self.progress_s:.1f} s"
        return ""

    def _turn(self) -> None:
        with self._lock:
            self._turn_due = False
            if not self.alive:
                return
            if self._stale:
                self._stale = False
                self._adopt()
            self._reconcile()
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
            self._hold(wanted, room)
        for state in self.legs.values():
            if state.aborted_s is None:
                running = state.attempt.key in keys
                self._set_state(state.attempt, AttemptState.RUNNING if running else AttemptState.PAUSED)

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
            self._abort(state)

    def _frame_over(self) -> None:
        self._timer = None
        with self._lock:
            self.touch()

    def _make_places(self, wanted: Sequence[Attempt]) -> None:
        """Where requests are held, places run out: the least wanted behind a wanted one goes."""
        for state in displaced(self._order, wanted, self.legs, self._config.max_resident):
            self._reporter.deviation(state.attempt, DeviationReason.NO_SLOT)
            self._abort(state)

    def _hold(self, wanted: Sequence[Attempt], room: int) -> None:
        assert self._holder is not None
        order = []
        for attempt in wanted:
            state = self.legs.get(attempt.key)
            if state is not None and state.aborted_s is None:
                limit = attempt.token_limit - state.base if attempt.token_limit and not attempt.pinned else 0
                order.append((state.leg.engine_id, limit))
        self._holder.post(order, room)

    def _admit(self, wanted: Sequence[Attempt], places: int) -> None:
        """Submit who is wanted and not there, in order, while there is room: nobody overtakes for want of memory."""
        reserved = sum(
            self._blocks(len(s.attempt.prompt_ids) + s.base + s.max_tokens) for s in self.legs.values()
        )
        crowded = len(self._order) > len(wanted)
        for rank, attempt in enumerate(wanted):
            if attempt.key in self.legs:
                continue
            if len(self.legs) >= places or self._queued > self._config.max_queued:
                return
            tokens = self._reserve.tokens(attempt)
            needed = self._blocks(attempt.known_tokens + tokens)
            if self.legs and reserved + needed > self._blocks(self._config.kv_capacity_tokens):
                return
            reserved += needed
            self._submit(attempt, tokens, 1.0 - rank / (len(wanted) + 1), crowded=crowded)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // max(self._facts.tokens_per_block, 1))

    def _submit(self, attempt: Attempt, tokens: int, priority: float, *, crowded: bool) -> None:
        request = LegRequest(
            request_id=f"{attempt.spec.request_id}-{attempt.key}-{attempt.legs}",
            ids=attempt.ids(),
            prompt_tokens=len(attempt.prompt_ids),
            max_tokens=tokens,
            sampling=sampling_of_leg(attempt),
            cache_salt=attempt.spec.cache_salt,
            adapter=attempt.spec.adapter,
            priority=priority,
            # Where more wait than run, whoever runs may be taken out.
            expected_back=crowded or ends_early(attempt, tokens),
        )
        try:
            leg = self._backend.submit(request)
        except LegRefused as error:
            self._counters["refused"] += 1
            self._bury(attempt, EndReason.FAILED, error.reason, error.message, retryable=error.retryable)
            return
        except BackendGone as error:
            self.die(str(error))
            return
        if attempt.legs:
            self._counters["resumes"] += 1
        elif attempt.count:
            self._counters["replays"] += 1
        attempt.legs += 1
        if not self.legs:
            self.progress_s = self._loop.time()
        state = LegState(attempt, leg, attempt.count, tokens, self._loop.time())
        self._set_cached(attempt, 0)
        attempt.leg = self.legs[attempt.key] = state
        self._spawn(self._follow(state), f"leg-{attempt.key}")

    def _abort(self, state: LegState) -> None:
        if state.aborted_s is None:
            state.aborted_s = self._loop.time()
            state.leg.abort()

    def _evict(self, attempt: Attempt) -> None:
        state = self.legs.get(attempt.key)
        if state is not None:
            self._soon(lambda: self._abort(state))
        self._set_cached(attempt, 0)
        if state is None and attempt.state is AttemptState.PAUSED:
            self._set_state(attempt, AttemptState.EVICTED)
        elif state is not None:
            state.attempt.state = AttemptState.EVICTED

    async def _follow(self, state: LegState) -> None:
        """Read one leg to its end."""
        try:
            async for item in state.leg:
                with self._lock:
                    self._take(state, item)
                    if item.end is not None:
                        self._over(state, item)
                        return
            raise LegFailed("the stream ended without an end")
        except LegFailed as error:
            with self._lock:
                self._leg_failed(state, str(error), final=error.final)

    def _take(self, state: LegState, item: LegItem) -> None:
        attempt = state.attempt
        self.progress_s = self._loop.time()
        if not self.alive or attempt.ended is not None:
            return
        going = attempt.reason is None
        for token in item.ids:
            going = going and attempt.append(token)
        if item.end is LegEnd.STOP and going:
            # The token that ended it is not always among its ids.
            going = attempt.append(self._eos_token_id if item.stop_id is None else item.stop_id)
        if attempt.count > attempt.published:
            self._reporter.tokens(attempt)
            self.flush_soon()
        if not going and item.end is None:
            self._abort(state)
        elif self._holder is not None and not attempt.runnable():
            # At its credit: it stays in the engine and makes room.
            self.touch()

    def _over(self, state: LegState, item: LegItem) -> None:
        """The engine holds nothing of this leg any more."""
        attempt = state.attempt
        del self.legs[attempt.key]
        attempt.leg = None
        self._failures.pop(attempt.key, None)
        if attempt.ended is not None or not self.alive:
            self.touch()
            return
        evicted = attempt.state is AttemptState.EVICTED
        size = self._facts.tokens_per_block
        self._set_cached(attempt, 0 if evicted or not size else (attempt.known_tokens - 1) // size * size)
        if attempt.reason is not None:
            self._bury(attempt, attempt.reason)
        elif attempt.cancelled:
            self._bury(attempt, EndReason.CANCELLED)
        elif item.end is LegEnd.STOP:
            self._bury(attempt, EndReason.STOP)
        else:
            attempt.state = AttemptState.EVICTED if evicted else AttemptState.PAUSED
            self._reporter.moved(attempt)
        self.touch()

    def _leg_failed(self, state: LegState, message: str, *, final: bool) -> None:
        """A request broke off in the engine: it goes on as a new one, a few times."""
        attempt = state.attempt
        self.legs.pop(attempt.key, None)
        attempt.leg = None
        if attempt.ended is None and self.alive:
            self._counters["leg_failures"] += 1
            self._failures[attempt.key] += 1
            _log.warning("attempt %d broke off in the engine: %s", attempt.key, message)
            if attempt.reason is not None:
                self._bury(attempt, attempt.reason)
            elif attempt.cancelled:
                self._bury(attempt, EndReason.CANCELLED)
            elif final or self._failures[attempt.key] >= _MAX_LEG_FAILURES:
                reason = "ENGINE_REFUSED" if final else "ENGINE_ERROR"
                self._bury(attempt, EndReason.FAILED, reason, message, retryable=not final)
            else:
                self._set_state(attempt, AttemptState.EVICTED)
        self.touch()

    async def _read_rows(self) -> None:
        async for row in self._backend.rows():
            with self._lock:
                self._iterations += 1
                queued, self._queued = self._queued, row.queued
                self.progress_s = self._loop.time()
                self._reporter.row(row)
                self.flush_soon()
                if queued > self._config.max_queued >= row.queued:
                    self.touch()

    # --- small things ----------------------------------------------------------------------------------------

    def _bury(self, attempt: Attempt, reason: EndReason, error_reason: str = "", message: str = "",
              *, retryable: bool = False) -> None:  # fmt: skip
        if attempt.ended is not None:
            return
        self._set_cached(attempt, 0)
        ended = attempt.end(
            reason, self._table.now_s(), error_reason=error_reason, message=message, retryable=retryable
        )
        self._failures.pop(attempt.key, None)
        if attempt.count > attempt.published:
            self._reporter.tokens(attempt)
        self._reporter.ended(ended)
        self._table.bury(ended)
        self.flush_soon()
        self._lock.notify_all()

    def _set_cached(self, attempt: Attempt, tokens: int) -> None:
        self._cached_tokens += tokens - attempt.cached_tokens
        attempt.cached_tokens = tokens

    def _set_state(self, attempt: Attempt, state: AttemptState) -> None:
        if attempt.state is not state and attempt.ended is None:
            attempt.state = state
            self._reporter.moved(attempt)

    def _soon(self, call: Callable[[], None]) -> None:
        if self._loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self._loop.call_soon(call)
        else:
            self._loop.call_soon_threadsafe(call)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the agent has failed", exc_info=error)
            with self._lock:
                self.die(f"{type(error).__name__}: {error}")

    def _stop_tasks(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks:
            task.cancel()
