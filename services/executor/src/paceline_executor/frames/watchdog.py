"""Looks after an engine whose own health check has been seen to lie: progress and promised ends count, not words."""

import asyncio
from contextlib import AbstractContextManager
from typing import Protocol

from paceline_executor.frames.backend import Backend


class Watched(Protocol):
    """What is looked at."""

    @property
    def alive(self) -> bool:
        """False once it was taken out."""

    def overdue(self, now_s: float) -> str:
        """What should have happened by now and has not, or ""."""

    def die(self, message: str) -> None:
        """Take the engine out."""


async def watch(
    frames: Watched, backend: Backend, lock: AbstractContextManager[bool], interval_s: float
) -> None:
    """Look every `interval_s` until the engine is out."""
    loop = asyncio.get_running_loop()
    while frames.alive:
        fault = await _fault(backend, interval_s)
        with lock:
            fault = fault or frames.overdue(loop.time())
            if fault:
                frames.die(fault)
                return
        await asyncio.sleep(interval_s)


async def _fault(backend: Backend, patience_s: float) -> str:
    try:
        async with asyncio.timeout(max(patience_s, 1.0) * 5):
            return await backend.fault()
    except TimeoutError:
        return "the health check does not answer"
