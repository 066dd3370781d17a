"""Many simulated engines in one process, each with its executor and its scheduler, on unix sockets.

`python -m paceline_lab.bench.fleet_host --engines 32 --first 0 --folder DIR --ready-port PORT [--set a.b=c ...]`
listens at `ready-port` (TCP) once all schedulers are up. Schedulers are at `unix:DIR/s<number>`.
"""

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

import uvloop

from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorServiceConfig
from paceline_runtime.config import load_config
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.logs import LogConfig, setup_logging
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig


class _SchedulerDocument(ConfigModel):
    """The section of the schedulers."""

    scheduler: SchedulerConfig = SchedulerConfig()
    """Schedulers; listen, executor and id are set for each."""


def scheduler_address(folder: Path, number: int) -> str:
    """Where the scheduler of an engine listens."""
    return f"unix:{folder / f's{number}'}"


async def host(engines: int, first: int, folder: Path, ready_port: int, sets: list[str]) -> None:
    """Serve until SIGTERM."""
    ended = asyncio.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(wanted, ended.set)
    executor_base = load_config(ExecutorServiceConfig, overrides=["executor.backend=simulated", *sets])
    scheduler_base = load_config(_SchedulerDocument, overrides=sets).scheduler
    async with contextlib.AsyncExitStack() as stack:
        for number in range(first, first + engines):
            at = f"unix:{folder / f'e{number}'}"
            section = executor_base.executor.model_copy(update={"listen": at, "engine_id": f"sim-{number}"})
            await stack.enter_async_context(
                ExecutorApp(executor_base.model_copy(update={"executor": section}))
            )
            scheduler = scheduler_base.model_copy(
                update={
                    "listen": scheduler_address(folder, number),
                    "executor": at,
                    "scheduler_id": f"scheduler-{number}",
                }
            )
            await stack.enter_async_context(SchedulerApp(scheduler))
        async with await asyncio.start_server(_close, "127.0.0.1", ready_port):
            await ended.wait()


async def _close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description="Hosts many simulated engines in one process.")
    parser.add_argument("--engines", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ready-port", type=int, required=True)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    setup_logging(LogConfig(level="warning"), "fleet-host")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(host(args.engines, args.first, args.folder, args.ready_port, args.set))


if __name__ == "__main__":
    main()
