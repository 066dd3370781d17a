"""The frame of every service process: command line, config, logs, telemetry, event loop, signals, exit code."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import uvloop

from paceline_runtime.auth import AuthConfig
from paceline_runtime.config import load_config
from paceline_runtime.config_docs import render_config
from paceline_runtime.config_model import ConfigError, ConfigModel
from paceline_runtime.logs import LogConfig, setup_logging
from paceline_runtime.shutdown import Shutdown
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.tls import TlsConfig

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
_SWITCH_INTERVAL_S = 0.0005


class ServiceConfig(ConfigModel):
    """The sections that all services share. A service adds its own, named like itself."""

    log: LogConfig = LogConfig()
    """Logs."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Traces and metrics."""
    tls: TlsConfig = TlsConfig()
    """Certificates."""
    auth: AuthConfig = AuthConfig()
    """Who may call."""


class Process:
    """What the frame hands to a service: its end, and its telemetry."""

    def __init__(self, shutdown: Shutdown, telemetry: Telemetry) -> None:
        self.shutdown = shutdown
        self.telemetry = telemetry


C = TypeVar("C", bound=ServiceConfig)
Main = Callable[[C, Process], Awaitable[None]]


def run_service(
    name: str, model: type[C], main: Main[C], *, argv: Sequence[str] | None = None, scrape: bool = False
) -> int:
    """Run `main(config, process)` as a service; returns the exit code, for `sys.exit`.

    0: ended on request; 1: failed, the log says why; 2: the configuration cannot be used, standard error says why.
    `scrape`: the service serves `/metrics` itself from `process.telemetry.prometheus_text()`.
    """
    parser = _parser(name, model)
    args = parser.parse_args(argv)
    try:
        config = load_config(model, args.config, overrides=args.set)
        setup_logging(config.log, name)
        return run_loop(_supervised(name, config, main, scrape))
    except ConfigError as error:
        for problem in error.problems:
            print(f"{parser.prog}: {problem}", file=sys.stderr)
        return EXIT_CONFIG


def run_loop(main: Awaitable[int]) -> int:
    """Run a coroutine on the event loop that services use."""

    async def entry() -> int:
        return await main

    # An engine's step loop or a database's thread shares the interpreter with the event loop, which otherwise waits
    # up to 5 ms for its turn: longer than a request takes through this process.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(entry())


async def _supervised(name: str, config: C, main: Main[C], scrape: bool) -> int:
    shutdown = Shutdown()
    shutdown.install_signals()
    telemetry = Telemetry(config.telemetry, name, scrape=scrape)
    try:
        await main(config, Process(shutdown, telemetry))
    except Exception as error:
        if (unusable := _config_error_in(error)) is not None:
            raise unusable from None
        log.exception("the service failed")
        return EXIT_FAILED
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    log.info("ended", extra={"shutdown_reason": shutdown.reason})
    return EXIT_OK


def _config_error_in(error: Exception) -> ConfigError | None:
    """The ConfigError that this is, or that a task group wrapped; None if there is none."""
    if isinstance(error, ExceptionGroup):
        return next((found for found in map(_config_error_in, error.exceptions) if found is not None), None)
    return error if isinstance(error, ConfigError) else None


def _parser(name: str, model: type[ServiceConfig]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"paceline-{name}",
        description=f"Runs the Paceline {name}.",
        epilog="configuration keys:\n" + render_config(model).replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file with the sections below")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        help="set one key; repeat for more; wins over the file",
    )
    return parser
