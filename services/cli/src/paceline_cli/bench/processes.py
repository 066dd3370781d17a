"""Processes of a benchmark that are no stack: started together, ended together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from paceline_cli.stack.child import ChildSpec
from paceline_cli.stack.settings import UpConfig
from paceline_cli.stack.statefile import StateDir
from paceline_cli.stack.supervisor import StackStartError, Supervisor

_POLL_S = 0.05


@contextlib.asynccontextmanager
async def running_processes(
    specs: Sequence[ChildSpec], folder: Path, *, timeout_s: float
) -> AsyncIterator[Supervisor]:
    """Start all, yield once each listens, end them. None is started again: a benchmark with a restart is void."""
    up = UpConfig(start_attempts=1, stop_timeout_s=5.0)
    state = StateDir(folder)
    state.acquire()
    supervisor = Supervisor(specs, up, state, gateway="", router="", model="")
    running = asyncio.create_task(supervisor.run(), name="supervisor")
    try:
        try:
            async with asyncio.timeout(timeout_s):
                while not supervisor.all_ready() and not running.done():  # noqa: ASYNC110 - states of processes
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            waiting = ", ".join(f"{child.spec.name}: {child.state}" for child in supervisor.children)
            raise StackStartError(f"not ready after {timeout_s:g} s ({waiting})") from None
        if running.done():
            await running
        yield supervisor
        if any(child.restarts for child in supervisor.children):
            raise StackStartError("a process died during the benchmark: its figures are void")
    finally:
        supervisor.stop()
        await running
        state.release()
