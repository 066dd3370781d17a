"""Runs one executor: `python -m paceline_executor --config FILE [--set executor.backend=simulated ...]`."""

import sys

from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorServiceConfig
from paceline_runtime.service import Process, run_service


async def main(config: ExecutorServiceConfig, process: Process) -> None:
    """Serve until the process is asked to end."""
    async with ExecutorApp(config, process.telemetry):
        await process.shutdown.wait()


if __name__ == "__main__":
    sys.exit(run_service("executor", ExecutorServiceConfig, main))
