"""One process of the stack: start, watch, stop."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from paceline_cli.stack import launch
from paceline_cli.stack.logs import RotatingLog
from paceline_cli.stack.probe import listens

_READ_BYTES = 64 << 10
_READY_POLL_S = 0.05
_KILLED_WAIT_S = 5.0
# A grandchild may keep the pipe open after the child has ended.
_LAST_OUTPUT_S = 1.0


class ChildState(StrEnum):
    """Life of a process under supervision."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # dead, to be started again after a pause
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. It is ready when it listens at `address` (`host:port`). Lower `stop_rank` is stopped earlier."""

    name: str
    argv: tuple[str, ...]
    address: str
    log: Path
    stop_rank: int
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A process that is started again and again. Not thread-safe; all calls from one event loop."""

    def __init__(self, spec: ChildSpec, *, log_bytes: int, log_files: int) -> None:
        self.spec = spec
        self.state = ChildState.STARTING
        self.restarts = 0
        self.started_s = 0.0
        self.last_exit: str = ""
        self._stop_asked = False
        self._process: asyncio.subprocess.Process | None = None
        self._log = RotatingLog(spec.log, max_bytes=log_bytes, keep=log_files)

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run_once(self) -> float:
        """Start it, wait for its end; seconds it lived. Cancelling does not stop it: `stop` does."""
        spec = self.spec
        self.state = ChildState.STARTING
        self.started_s = time.monotonic()
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *spec.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **spec.environment},
            start_new_session=True,  # Ctrl-C reaches the supervisor alone
        )  # fmt: skip
        if self._stop_asked:  # it came while the process was being made
            self._signal(signal.SIGKILL)
        async with asyncio.TaskGroup() as group:
            ready = group.create_task(self._watch_ready())
            copy = group.create_task(self._copy_output(process))
            code = await process.wait()
            ready.cancel()
            await asyncio.wait([copy], timeout=_LAST_OUTPUT_S)
            copy.cancel()
        self.last_exit = _exit_text(code)
        return time.monotonic() - self.started_s

    async def stop(self, timeout_s: float) -> bool:
        """SIGTERM, then SIGKILL after `timeout_s`; True if it ended by itself. It is not started again."""
        self._stop_asked = True
        process = self._process
        if process is None or process.returncode is not None:
            return True
        self.state = ChildState.STOPPING
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
            return True
        except TimeoutError:
            self._signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_WAIT_S):
                    await process.wait()
            return False

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def _watch_ready(self) -> None:
        while not await listens(self.spec.address):  # noqa: ASYNC110 - another process cannot set our event
            await asyncio.sleep(_READY_POLL_S)
        if self.state is ChildState.STARTING:
            self.state = ChildState.READY

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(_READ_BYTES):
            self._log.write(data)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
