"""A stack as one object: configuration, model, processes, readiness, end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline_cli.fleet import FleetReader
from paceline_cli.stack import configuration
from paceline_cli.stack.layout import Addresses, draw_addresses, lay_out
from paceline_cli.stack.model import ensure_model
from paceline_cli.stack.probe import http_status
from paceline_cli.stack.settings import UpConfig
from paceline_cli.stack.statefile import StateDir
from paceline_cli.stack.supervisor import StackStartError, Supervisor

_READY_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What to start. `defaults` are below the file, `overrides` (`section.key=value`) above it."""

    state_dir: Path
    file: Path | None = None
    defaults: Mapping[str, Mapping[str, Any]] | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A stack that answers."""

    supervisor: Supervisor
    addresses: Addresses
    up: UpConfig
    state_dir: Path
    tree: Mapping[str, Any]


def built_in(state_dir: Path) -> dict[str, dict[str, Any]]:
    """Defaults of a local stack that no service can know by itself."""
    database = (state_dir / "paceline.db").resolve()
    return {
        "up": {},
        "executor": {"backend": "llamacpp"},
        "store": {"url": f"sqlite+aiosqlite:///{database}"},
    }


def prepare(plan: StackPlan, *, write_to: Path | None = None) -> tuple[dict[str, Any], UpConfig, Path]:
    """The effective configuration, written into the state directory (or `write_to`); its `up` section; its path."""
    defaults = built_in(plan.state_dir)
    for section, values in (plan.defaults or {}).items():
        defaults.setdefault(section, {}).update(values)
    tree = configuration.effective(plan.file, defaults, plan.overrides)
    path = (write_to or plan.state_dir) / configuration.CONFIG_FILE
    configuration.write(tree, path)
    return tree, configuration.up_config(path), path


@contextlib.asynccontextmanager
async def running_stack(
    plan: StackPlan,
    *,
    on_event: Callable[[str], None] = lambda _: None,
    on_start: Callable[[Supervisor], None] = lambda _: None,
) -> AsyncIterator[RunningStack]:
    """Start a stack, yield it once it answers, end it.

    A stack that was asked to stop while it started is yielded too: `supervisor.ready` tells. Raises
    StateDirBusyError, PortConflictError, ConfigError, StackStartError. The state directory stays.
    """
    state = StateDir(plan.state_dir)
    state.acquire()
    try:
        tree, up, path = prepare(plan)
        await ensure_model(tree["executor"], on_event)
        addresses = draw_addresses(up)
        backend = str(tree["executor"].get("backend", "llamacpp"))
        layout = lay_out(up, addresses, state, path, backend=backend)
        model = str(tree["executor"].get("model", "") or "")
        supervisor = Supervisor(
            layout.children, up, state, gateway=addresses.gateway, router=addresses.router, model=model
        )
        supervisor.on_event = on_event
        on_start(supervisor)
        running = asyncio.create_task(supervisor.run(), name="supervisor")
        try:
            await _until_ready(supervisor, running, addresses, up)
            if running.done():
                await running
            yield RunningStack(supervisor, addresses, up, plan.state_dir, tree)
        finally:
            supervisor.stop()
            await running
    finally:
        state.release()


async def _until_ready(
    supervisor: Supervisor, running: asyncio.Task[None], addresses: Addresses, up: UpConfig
) -> None:
    """Wait until the gateway answers and every engine can be reached through the whole line."""
    try:
        async with asyncio.timeout(up.ready_timeout_s), FleetReader(addresses.router) as fleet:
            while not running.done() and not supervisor.is_stopping():
                if supervisor.all_ready() and await http_status(addresses.gateway, "/readyz") == 200:
                    engines = (await fleet.read()).engines
                    if sum(engine.state == "up" for engine in engines) >= up.engines:
                        supervisor.ready.set()
                        return
                await asyncio.sleep(_READY_POLL_S)
    except TimeoutError:
        waiting = ", ".join(f"{child.spec.name}: {child.state}" for child in supervisor.children)
        raise StackStartError(
            f"the stack is not ready after {up.ready_timeout_s:g} s ({waiting}); see the logs in "
            f"{supervisor.children[0].spec.log.parent}"
        ) from None
