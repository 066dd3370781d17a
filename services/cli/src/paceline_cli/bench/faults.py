"""`paceline bench faults`: a private stack whose processes are killed while clients stream."""

import asyncio
import contextlib
import os
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from paceline_cli.bench.databases import open_database
from paceline_cli.stack.child import Child
from paceline_cli.stack.layout import draw_addresses, lay_out
from paceline_cli.stack.run import StackPlan, prepare
from paceline_cli.stack.statefile import StateDir
from paceline_cli.stack.supervisor import Supervisor
from paceline_lab.bench.faults.plan import FaultPlan
from paceline_lab.bench.faults.run import Line, Progress, bench_faults
from paceline_lab.machine import describe_machine

_OWN = (
    # Killed parts are started again at once, however often it happens.
    "up.restart_delay_ms=50",
    "up.restart_delay_max_s=0.5",
    # On a slow machine a process takes long to start: what is kept for its return is kept longer than by default.
    "executor.orphan_ttl_s=120",
    "scheduler.router_grace_s=120",
    "router.scheduler_grace_s=120",
    "router.detach_ttl_s=120",
    "router.sync_timeout_s=120",
)
_SIMULATED = (
    "executor.backend=simulated",
    "executor.simulated.time_scale=2",
    "executor.max_resident=64",
)
_TINY = ("executor.model_path=tiny", "executor.speed_factor=2")


async def run_faults(
    plan: FaultPlan,
    *,
    engines: int,
    store: str,
    model: str,
    predictor: bool = True,
    overrides: tuple[str, ...],
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Start, break, count, end. `model`: `simulated`, `tiny` (the real engine with a random model) or a GGUF file.

    `predictor`: there is one, to be killed too.
    """
    own_model = {"simulated": _SIMULATED, "tiny": _TINY}.get(model, (f"executor.model_path={model}",))
    router_id = f"faults-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="paceline-faults-", ignore_cleanup_errors=True) as folder:
        async with open_database(store, Path(folder), router_id) as database:
            sets = (f"up.engines={engines}", f"store.url={database.url}", f"router.router_id={router_id}")
            overrides = ("up.ports=auto", *sets, *_OWN, *own_model, *overrides)
            stack = StackPlan(Path(folder) / "stack", overrides=overrides)
            async with _running_line(stack, predictor) as parts:
                result = await bench_faults(plan, Line(parts, parts.schedulers(), database), say, progress)
    return {
        "benchmark": "faults",
        "model": model,
        "engines": engines,
        **result,
        "machine": describe_machine(),
    }


@contextlib.asynccontextmanager
async def _running_line(plan: StackPlan, predictor: bool) -> AsyncIterator["StackParts"]:
    """A stack without what no client here uses. It may not serve yet: the benchmark waits for it."""
    state = StateDir(plan.state_dir)
    state.acquire()
    tree, up, path = prepare(plan)
    addresses = draw_addresses(up)
    layout = lay_out(up, addresses, state, path, backend=str(tree["executor"]["backend"]))
    left_out = {"gateway"} if predictor else {"gateway", "predictor"}
    specs = [spec for spec in layout.children if spec.name not in left_out]
    supervisor = Supervisor(specs, up, state, gateway="", router=addresses.router, model="")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(), name="supervisor")
            try:
                yield StackParts(supervisor, addresses.router)
            finally:
                supervisor.stop()
    finally:
        state.release()


class StackParts:
    """The processes of a stack, to be killed by name. Their supervisor starts them again."""

    def __init__(self, supervisor: Supervisor, router: str) -> None:
        self._children: dict[str, Child] = {child.spec.name: child for child in supervisor.children}
        self._all_ready = supervisor.all_ready
        self.router = router
        self.engines = tuple(
            name.removeprefix("executor-") for name in self._children if name.startswith("executor-")
        )

    def schedulers(self) -> dict[str, str]:
        """Name to address."""
        return {
            name: child.spec.address
            for name, child in self._children.items()
            if name.startswith("scheduler-")
        }

    def pid(self, name: str) -> int | None:
        """Process id while it lives."""
        return self._children[name].pid

    def kill(self, name: str) -> None:
        """`kill -9`."""
        self._signal(name, signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """Let it stand still."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self._signal(name, signal.SIGCONT)

    def ready(self) -> bool:
        """True while all processes listen."""
        return self._all_ready()

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
