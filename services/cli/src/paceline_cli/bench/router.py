"""`paceline bench router`: a router process over announced engines, driven over a socket."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paceline_cli.bench.processes import running_processes
from paceline_cli.stack.child import ChildSpec
from paceline_cli.stack.ports import free_ports
from paceline_lab.bench.router import RouterPlan
from paceline_lab.bench.router_calls import CallsPlan, measure_calls

_START_TIMEOUT_S = 60.0
_HOST = "127.0.0.1"


async def bench_router_calls(
    plan: RouterPlan, calls: CallsPlan, overrides: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Any]:
    """Start, measure, end."""
    with tempfile.TemporaryDirectory(prefix="paceline-router-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        spec = _process(plan, folder, overrides)
        async with running_processes([spec], folder, timeout_s=_START_TIMEOUT_S) as supervisor:
            figures = await measure_calls(calls, spec.address, supervisor.children[0].pid or 0, say)
    return {**figures, "calls": asdict(calls), "announced_engines": True}


def _process(plan: RouterPlan, folder: Path, overrides: tuple[str, ...]) -> ChildSpec:
    (port,) = free_ports(_HOST, 1)
    address = f"{_HOST}:{port}"
    argv = [sys.executable, "-m", "paceline_lab.bench.router_host", "--listen", address]
    argv += ["--engines", str(plan.engines), "--fill", str(plan.fill), "--seed", str(plan.seed)]
    for one in (f"router.placement={plan.headline}", *overrides):
        argv += ["--set", one]
    return ChildSpec("router", tuple(argv), address, folder / "router.log", stop_rank=0)
