"""A whole stack of real processes, started by the product's own command."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 180.0
EVENT_TIMEOUT_S = 180.0
QUICK_END = (
    "up.ready_timeout_s=170",
    "up.stop_timeout_s=5",
    "gateway.drain_limit_s=0.2",
    *(f"{name}.server.drain_grace_s=0.2" for name in ("router", "scheduler", "predictor", "executor")),
)
"""What still runs when a test has ended is of no interest."""
PATIENT = ("router.leave_out_after_ms=600000",)
"""A host that stands still for seconds makes no engine unfit."""
_POLL_S = 0.05


class StackProcess:
    """`paceline up` in a process of its own; its state file tells pids and addresses."""

    def __init__(self, state_dir: Path, *overrides: str, model: str = "tiny") -> None:
        self.state_dir = state_dir
        self._overrides = ("up.ports=auto", *QUICK_END, *PATIENT, *overrides)
        self._model = model
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "StackProcess":
        self.state_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "paceline_cli", "up", "--state-dir", str(self.state_dir)]
        if self._model:
            command += ["--model", self._model]
        for override in self._overrides:
            command += ["--set", override]
        with (self.state_dir / "up.out").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(lambda: bool(self.state().get("ready")), "ready", START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()  # the children die with it
            process.wait(timeout=10)

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.state_dir / "stack.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    @property
    def router(self) -> str:
        return str(self.state()["router"])

    @property
    def gateway(self) -> str:
        return str(self.state()["gateway"])

    def service(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.state()["services"] if entry["name"] == name)

    def addresses(self, role: str) -> list[str]:
        return [entry["address"] for entry in self.state()["services"] if entry["name"].startswith(role)]

    def kill(self, name: str) -> int:
        """`kill -9`; the pid that died."""
        pid = int(self.service(name)["pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    async def restarted(self, name: str, old_pid: int) -> None:
        """Wait until the supervisor has the service running again."""

        def back() -> bool:
            entry = self.service(name)
            return entry["pid"] not in (None, old_pid) and entry["state"] == "ready"

        await asyncio.to_thread(self._wait, back, f"{name} to be back", EVENT_TIMEOUT_S)

    def _wait(self, condition: Any, what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"the stack ended:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:.0f} s for {what}:\n{self.tail()}")
            time.sleep(_POLL_S)  # another process's file: nothing to wait on

    def tail(self) -> str:
        parts = [(self.state_dir / "up.out").read_text(errors="replace")[-2000:]]
        logs = sorted((self.state_dir / "logs").glob("*.log"))
        parts += [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs]
        return "\n".join(parts)
