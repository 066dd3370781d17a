"""Stays of attempts in the engine: handed in, read to their ends, aborted. Each ends with its last item, not before."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

from paceline_executor.contract import AttemptState, EndReason
from paceline_executor.frames.attempt import Attempt, LegState
from paceline_executor.frames.backend import (
    Backend,
    LegEnd,
    LegFailed,
    LegItem,
    LegRefused,
    LegRequest,
)
from paceline_executor.frames.book import Book
from paceline_executor.frames.choice import ends_early, sampling_of_leg
from paceline_executor.frames.tasks import LoopTasks

_log = logging.getLogger(__name__)
_MAX_LEG_FAILURES = 3


class Legs:
    """What is in the engine. Used under its lock, on its loop. `on_change`: a leg is over, or out of credit."""

    def __init__(
        self,
        backend: Backend,
        book: Book,
        tasks: LoopTasks,
        lock: AbstractContextManager[bool],
        counters: Counter[str],
        eos_token_id: int,
        *,
        holds: bool,
        on_change: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._block_tokens = backend.facts.tokens_per_block
        self._book = book
        self._tasks = tasks
        self._now_s = tasks.loop.time
        self._lock = lock
        self._counters = counters
        self._eos_token_id = eos_token_id
        self._holds = holds
        self._on_change = on_change
        self._failures: Counter[int] = Counter()
        self.by_key: dict[int, LegState] = {}
        """Every stay that is not over, by attempt key, aborted ones included."""
        self._progress_s = self._now_s()
        """When the engine was last known to have done something, or to have nothing to do."""
        self.moved = False
        """It did something since `overdue` last looked: cheaper than a look at the clock for every token."""
        self.closed = False
        """The engine was taken out: what still comes is dropped."""

    def submit(self, attempt: Attempt, tokens: int, priority: float, *, crowded: bool) -> None:
        """Hand an attempt in for so many tokens. `crowded`: more wait than run. Raises BackendGone."""
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
        if attempt.legs:
            self._counters["resumes"] += 1
        elif attempt.count:
            self._counters["replays"] += 1
        attempt.legs += 1
        now_s = self._now_s()
        if not self.by_key:
            self._progress_s = now_s
        state = LegState(attempt, leg, attempt.count, tokens, now_s)
        attempt.leg = self.by_key[attempt.key] = state
        self._book.entered(attempt)
        self._tasks.spawn(self._follow(state), f"leg-{attempt.key}")

    def abort(self, state: LegState) -> None:
        """Ask for its end, once."""
        if state.aborted_s is None:
            state.aborted_s = self._now_s()
            state.leg.abort()

    def abort_soon(self, state: LegState) -> None:
        """The same from any thread."""
        self._tasks.soon(lambda: self.abort(state))

    def overdue(self, now_s: float, abort_timeout_s: float, progress_timeout_s: float) -> str:
        """What should have happened by now and has not, or ""."""
        for state in self.by_key.values():
            waited_s = 0.0 if state.aborted_s is None else now_s - state.aborted_s
            if waited_s > abort_timeout_s:
                return f"attempt {state.attempt.key} was aborted {waited_s:.1f} s ago and has not ended"
        waiting = any(s.aborted_s is None and s.attempt.runnable() for s in self.by_key.values())
        if self.moved or not waiting:
            self.moved, self._progress_s = False, now_s
        elif now_s - self._progress_s > progress_timeout_s:
            return f"no progress for {now_s - self._progress_s:.1f} s"
        return ""

    async def _follow(self, state: LegState) -> None:
        """Read one leg to its end."""
        lock, take = self._lock, self._take
        try:
            async for item in state.leg:
                with lock:
                    take(state, item)
                    if item.end is not None:
                        self._over(state, item.end)
                        return
            raise LegFailed("the stream ended without an end")
        except LegFailed as error:
            with lock:
                self._failed(state, str(error), final=error.final)

    def _take(self, state: LegState, item: LegItem) -> None:
        attempt = state.attempt
        self.moved = True
        if self.closed or attempt.ended is not None:
            return
        before = len(attempt.output_ids)
        going = attempt.extend(item.ids)
        if item.end is LegEnd.STOP and going:
            # The token that ended it is not always among its ids.
            going = attempt.append(self._eos_token_id if item.stop_id is None else item.stop_id)
        count = len(attempt.output_ids)
        self._book.used_tokens += count - before
        if count > attempt.published:
            self._book.tokens(attempt)
        if not going and item.end is None:
            self.abort(state)
        elif self._holds and attempt.token_limit and not attempt.runnable():
            # At its credit: it stays in the engine and makes room.
            self._on_change()

    def _over(self, state: LegState, end: LegEnd) -> None:
        """The engine holds nothing of this leg any more."""
        attempt = state.attempt
        self._remove(attempt)
        if attempt.count > state.base:
            self._failures.pop(attempt.key, None)
        if attempt.ended is None and not self.closed:
            evicted = attempt.state is AttemptState.EVICTED
            size = self._block_tokens
            kept = 0 if evicted or not size else (attempt.known_tokens - 1) // size * size
            self._book.set_cached(attempt, kept)
            silent = end is LegEnd.LENGTH and attempt.count == state.base
            finished = self._bury_finished(attempt, stopped=end is LegEnd.STOP)
            if not finished and not (silent and self._gives_up(attempt)):
                attempt.state = AttemptState.EVICTED if evicted else AttemptState.PAUSED
                self._book.reporter.moved(attempt)
        self._on_change()

    def _failed(self, state: LegState, message: str, *, final: bool) -> None:
        """A request broke off in the engine: it goes on as a new one, a few times."""
        attempt = state.attempt
        self._remove(attempt)
        if attempt.ended is None and not self.closed:
            self._counters["leg_failures"] += 1
            self._failures[attempt.key] += 1
            _log.warning("attempt %d broke off in the engine: %s", attempt.key, message)
            if self._bury_finished(attempt, stopped=False):
                pass
            elif final or self._failures[attempt.key] >= _MAX_LEG_FAILURES:
                reason = "ENGINE_REFUSED" if final else "ENGINE_ERROR"
                self._bury(attempt, EndReason.FAILED, reason, message, retryable=not final)
            else:
                self._book.set_state(attempt, AttemptState.EVICTED)
        self._on_change()

    def _gives_up(self, attempt: Attempt) -> bool:
        """A leg went its whole length and told no token. Asked for again and again it would never end."""
        self._counters["legs_without_tokens"] += 1
        self._failures[attempt.key] += 1
        if self._failures[attempt.key] < _MAX_LEG_FAILURES:
            return False
        _log.warning("attempt %d: the engine tells no further token, so it ends here", attempt.key)
        self._bury(attempt, EndReason.LENGTH)
        return True

    def _bury_finished(self, attempt: Attempt, *, stopped: bool) -> bool:
        """End it if nothing more is wanted of it."""
        reason = attempt.reason
        if reason is None and attempt.cancelled:
            reason = EndReason.CANCELLED
        if reason is None and stopped:
            reason = EndReason.STOP
        if reason is not None:
            self._bury(attempt, reason)
        return reason is not None

    def _bury(self, attempt: Attempt, reason: EndReason, error_reason: str = "", message: str = "",
              *, retryable: bool = False) -> None:  # fmt: skip
        self._failures.pop(attempt.key, None)
        self._book.bury(attempt, reason, error_reason, message, retryable=retryable)

    def _remove(self, attempt: Attempt) -> None:
        if self.by_key.pop(attempt.key, None) is not None:
            self._book.left(attempt)
        attempt.leg = None
