"""The agent's work on its event loop: calls from any thread, tasks that are kept, and word of those that fail."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class LoopTasks:
    """Made on the loop. `on_failure` gets what a task raised, on the loop, without the lock."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def soon(self, call: Callable[[], None]) -> None:
        """Call in the next turn of the loop; from any thread."""
        if self.loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self.loop.call_soon(call)
        else:
            self.loop.call_soon_threadsafe(call)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a coroutine as a task."""
        task: asyncio.Task[None] = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def names(self) -> list[str]:
        """Tasks that are not done."""
        return [task.get_name() for task in self._tasks]

    def cancel(self) -> None:
        """Cancel all."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Cancel all and wait for them."""
        tasks = list(self._tasks)
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the agent has failed", exc_info=error)
            self._on_failure(error)
