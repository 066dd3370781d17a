"""Every attempt a simulated engine knows: live ones, and tombstones of ended ones until released or too old."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

from paceline_executor.contract import AttemptAccepted, AttemptEnded, EndReason, EngineError, Event
from paceline_executor.simulated.attempt import Attempt


class Events(Protocol):
    """Where events go."""

    def put(self, *events: Event) -> None:
        """Append events."""


class AttemptTable:
    """Used under the engine's lock. `on_end` is told of every attempt that became a tombstone."""

    def __init__(
        self,
        events: Events,
        now_s: Callable[[], float],
        on_end: Callable[[Attempt], None],
        *,
        max_tombstones: int,
        tombstone_ttl_s: float,
    ) -> None:
        self._events = events
        self._now_s = now_s
        self._on_end = on_end
        self._max_tombstones = max_tombstones
        self._tombstone_ttl_s = tombstone_ttl_s
        self._attempts: dict[int, Attempt] = {}
        self._tombstones: OrderedDict[int, None] = OrderedDict()
        self.counters: Counter[str] = Counter()
        """What happened so far, by name."""

    @property
    def live(self) -> int:
        """Attempts that have not ended."""
        return len(self._attempts) - len(self._tombstones)

    def get(self, attempt_key: int) -> Attempt | None:
        """An attempt, live or ended; None if it is not known."""
        return self._attempts.get(attempt_key)

    def get_live(self, attempt_key: int) -> Attempt | None:
        """An attempt that has not ended."""
        attempt = self._attempts.get(attempt_key)
        return None if attempt is None or attempt.ended is not None else attempt

    def rows(self) -> list[Attempt]:
        """All attempts, tombstones that are not too old included."""
        self._sweep()
        return list(self._attempts.values())

    def insert(self, attempt: Attempt) -> None:
        """Take an attempt in and say so; one whose forced ids already held the end ends at once."""
        self._attempts[attempt.key] = attempt
        self._events.put(AttemptAccepted(attempt.key, attempt.prompt_ids, 0))
        self.end_if_over(attempt)

    def repeat(self, attempt: Attempt) -> None:
        """Say again what was said of an attempt."""
        self.counters["repeated_adds"] += 1
        self._events.put(AttemptAccepted(attempt.key, attempt.prompt_ids, 0))
        if attempt.ended is not None:
            self._events.put(attempt.ended)

    def reject(self, attempt_key: int, error: EngineError) -> None:
        """Refuse an attempt; nothing is kept of it."""
        self.counters["rejected"] += 1
        self._events.put(
            AttemptEnded(
                attempt_key,
                EndReason.REJECTED,
                error_reason=error.reason,
                message=error.message,
                retryable=error.retryable,
            )
        )

    def end(self, attempt: Attempt, reason: EndReason, *, error_reason: str = "", message: str = "") -> None:
        """End a live attempt and say so."""
        self._events.put(self.end_quietly(attempt, reason, error_reason=error_reason, message=message))

    def end_if_over(self, attempt: Attempt) -> None:
        """End an attempt whose answer has come to its end."""
        if attempt.answer.ended is not None:
            self.end(attempt, attempt.answer.ended)

    def end_quietly(
        self, attempt: Attempt, reason: EndReason, *, error_reason: str = "", message: str = ""
    ) -> AttemptEnded:
        """End a live attempt; the caller says so, after its last tokens."""
        ended = attempt.end(reason, self._now_s(), error_reason=error_reason, message=message)
        self._tombstones[attempt.key] = None
        self._on_end(attempt)
        self._sweep()
        return ended

    def release(self, attempt_key: int) -> None:
        """Forget an ended attempt."""
        if attempt_key in self._tombstones:
            del self._tombstones[attempt_key], self._attempts[attempt_key]

    def _sweep(self) -> None:
        oldest_kept_s = self._now_s() - self._tombstone_ttl_s
        while self._tombstones:
            key = next(iter(self._tombstones))
            expired = self._attempts[key].ended_at_s < oldest_kept_s
            if not expired and len(self._tombstones) <= self._max_tombstones:
                return
            del self._tombstones[key], self._attempts[key]
            self.counters["tombstones_dropped"] += 1
