"""Runs one executor: `python -m paceline_executor --config FILE [--set executor.backend=simulated ...]`."""

import asyncio
import sys

from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorServiceConfig
from paceline_runtime.service import Process, run_service


class EngineDied(RuntimeError):
    """The engine failed for good; whoever supervises this process starts a new incarnation."""


async def main(config: ExecutorServiceConfig, process: Process) -> None:
    """Serve until the process is asked to end, or the engine has died."""
    async with ExecutorApp(config, process.telemetry) as app:
        ends = [asyncio.ensure_future(process.shutdown.wait()), asyncio.ensure_future(app.until_dead())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if not process.shutdown.requested:
            raise EngineDied("the engine's step loop has ended; see the log above")


if __name__ == "__main__":
    sys.exit(run_service("executor", ExecutorServiceConfig, main))
