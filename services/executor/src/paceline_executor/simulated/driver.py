"""Wakes many simulated engines at their step boundaries, from one event loop and without a thread each."""

import asyncio
import heapq
import threading
from collections.abc import Callable
from typing import Protocol


class Driver(Protocol):
    """A clock that calls back."""

    def now_s(self) -> float:
        """Monotonic time, seconds."""

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call once at that time or soon after. From any thread."""


class LoopDriver:
    """Timers of the running asyncio loop; engines step in the loop's thread, some 10 microseconds a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def now_s(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call in the loop's thread."""
        if self._loop.is_closed():
            return
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.call_at, due_s, callback)
        elif due_s <= self._loop.time():
            self._loop.call_soon(callback)
        else:
            self._loop.call_at(due_s, callback)


class ManualDriver:
    """A clock that a test or a simulator turns by hand."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def now_s(self) -> float:
        """The time it was turned to."""
        return self._now_s

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call when the time is turned past it."""
        self._count += 1
        heapq.heappush(self._timers, (max(due_s, self._now_s), self._count, callback))

    def advance(self, by_s: float) -> None:
        """Turn the time on, calling what falls due in order."""
        end_s = self._now_s + by_s
        while self._timers and self._timers[0][0] <= end_s:
            self._now_s, _, callback = heapq.heappop(self._timers)
            callback()
        self._now_s = end_s
