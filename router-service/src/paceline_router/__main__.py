"""`python -m paceline_router`: run the router as a process."""

import sys

from paceline_router.app import RouterApp
from paceline_router.config import Config
from paceline_runtime.service import Process, run_service


async def main(config: Config, process: Process) -> None:
    """Serve until asked to end."""
    async with RouterApp(config, telemetry=process.telemetry, shutdown=process.shutdown):
        await process.shutdown.wait()


if __name__ == "__main__":
    sys.exit(run_service("router", Config, main))
