"""What a running stack tells other commands: a lock, and a JSON file with its processes and addresses."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

STATE_FILE = "stack.json"
LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One process of the stack."""

    name: str
    pid: int | None
    address: str
    state: str
    restarts: int
    log: str


@dataclass(frozen=True, slots=True)
class StackState:
    """A stack as its supervisor last saw it. `supervisor_started_s` (Unix seconds) tells a reused pid apart."""

    supervisor_pid: int
    supervisor_started_s: float
    ready: bool
    gateway: str
    router: str
    model: str
    services: tuple[ServiceEntry, ...]

    def alive(self) -> bool:
        """True while its supervisor runs."""
        try:
            return abs(psutil.Process(self.supervisor_pid).create_time() - self.supervisor_started_s) < 1.0
        except psutil.Error:
            return False


class StateDirBusyError(RuntimeError):
    """Another stack holds the state directory."""


class StateDir:
    """The directory of one stack: `lock`, `stack.json`, `paceline.yaml`, `logs/`, the database."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Create and lock it for this process; raises `StateDirBusyError`."""
        for folder in (self.path, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (self.path / LOCK_FILE).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            state = self.read()
            holder = f" (pid {state.supervisor_pid})" if state else ""
            raise StateDirBusyError(
                f"a stack is already running in {self.path}{holder}: stop it with "
                f"`paceline down --state-dir {self.path}`, or use another --state-dir"
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Forget the stack and unlock."""
        (self.path / STATE_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write(self, state: StackState) -> None:
        """Publish the state, atomically."""
        target = self.path / STATE_FILE
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(state), indent=1))
        os.replace(partial, target)

    def read(self) -> StackState | None:
        """The last published state; None when there is none or it cannot be understood."""
        try:
            raw: dict[str, Any] = json.loads((self.path / STATE_FILE).read_text())
            services = tuple(ServiceEntry(**entry) for entry in raw.pop("services"))
            return StackState(services=services, **raw)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
