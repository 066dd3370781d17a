"""Every attempt the agent knows: live ones, and tombstones of ended ones until released or too old."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from paceline_executor.contract import AttemptEnded
from paceline_executor.frames.attempt import Attempt


class AttemptTable:
    """Used under the engine's lock."""

    def __init__(self, *, max_tombstones: int, tombstone_ttl_s: float, counters: Counter[str],
                 now_s: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._attempts: dict[int, Attempt] = {}
        self._tombstones: OrderedDict[int, None] = OrderedDict()
        self._max_tombstones = max_tombstones
        self._tombstone_ttl_s = tombstone_ttl_s
        self._counters = counters
        self.now_s = now_s

    @property
    def live(self) -> int:
        """Attempts that have not ended."""
        return len(self._attempts) - len(self._tombstones)

    def get(self, key: int) -> Attempt | None:
        """An attempt, live or ended."""
        return self._attempts.get(key)

    def get_live(self, key: int) -> Attempt | None:
        """An attempt that has not ended."""
        attempt = self._attempts.get(key)
        return None if attempt is None or attempt.ended is not None else attempt

    def insert(self, attempt: Attempt) -> None:
        """Take an attempt in."""
        self._attempts[attempt.key] = attempt

    def bury(self, ended: AttemptEnded) -> None:
        """An attempt has ended."""
        self._tombstones[ended.attempt_key] = None
        self.sweep()

    def release(self, key: int) -> None:
        """Forget an ended attempt."""
        if key in self._tombstones:
            del self._tombstones[key], self._attempts[key]

    def live_attempts(self) -> Iterator[Attempt]:
        """Those that have not ended."""
        return (attempt for attempt in list(self._attempts.values()) if attempt.ended is None)

    def all(self) -> list[Attempt]:
        """All, tombstones that are not too old included."""
        self.sweep()
        return list(self._attempts.values())

    def sweep(self) -> None:
        """Drop tombstones past their time or number."""
        oldest_kept_s = self.now_s() - self._tombstone_ttl_s
        while self._tombstones:
            key = next(iter(self._tombstones))
            expired = self._attempts[key].ended_at_s < oldest_kept_s
            if not expired and len(self._tombstones) <= self._max_tombstones:
                return
            del self._tombstones[key], self._attempts[key]
            self._counters["tombstones_dropped"] += 1
