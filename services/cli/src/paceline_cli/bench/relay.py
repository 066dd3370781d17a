"""`paceline bench relay`: one router, and many simulated engines in a few processes."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from paceline_cli.bench.processes import running_processes
from paceline_cli.stack.child import ChildSpec
from paceline_cli.stack.ports import free_ports
from paceline_lab.bench.fleet_host import scheduler_address
from paceline_lab.bench.relay import RelayPlan, measure_relay
from paceline_lab.machine import describe_machine

_START_TIMEOUT_S = 90.0
_HOST = "127.0.0.1"


async def bench_relay(
    plan: RelayPlan,
    *,
    hosts: int,
    with_store: bool,
    time_scale: float,
    overrides: tuple[str, ...],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Start, measure, end."""
    with tempfile.TemporaryDirectory(prefix="paceline-relay-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        specs = _processes(plan, folder, hosts, with_store, time_scale, overrides)
        async with running_processes(specs, folder, timeout_s=_START_TIMEOUT_S) as supervisor:
            say(f"{plan.engines} simulated engines in {hosts} processes, one router")
            pids = {child.spec.name: child.pid or 0 for child in supervisor.children}
            result = await measure_relay(plan, specs[-1].address, pids, say)
    return {
        "benchmark": "relay",
        **result,
        "store": "sqlite" if with_store else "none",
        "simulated_engines": True,
        "time_scale": time_scale,
        "machine": describe_machine(),
    }


def _processes(
    plan: RelayPlan, folder: Path, hosts: int, with_store: bool, time_scale: float, overrides: tuple[str, ...]
) -> list[ChildSpec]:
    """Fleet hosts, then the router."""
    *ready_ports, router_port = free_ports(_HOST, hosts + 1)
    sets = [
        f"executor.max_batch={plan.batch}",
        f"executor.max_resident={max(32, 2 * plan.batch)}",
        f"executor.simulated.time_scale={time_scale}",
        f"scheduler.max_live={2 * plan.memory_requests}",
    ]
    sets += [override for override in overrides if override.partition(".")[0] in ("executor", "scheduler")]
    specs = []
    share = -(-plan.engines // hosts)
    for index, port in enumerate(ready_ports):
        first = index * share
        argv = [
            sys.executable,
            "-m",
            "paceline_lab.bench.fleet_host",
            "--folder",
            str(folder),
            "--first",
            str(first),
        ]
        argv += ["--engines", str(min(share, plan.engines - first)), "--ready-port", str(port)]
        for one in sets:
            argv += ["--set", one]
        log = folder / f"fleet-{index}.log"
        specs.append(ChildSpec(f"fleet-{index}", tuple(argv), f"{_HOST}:{port}", log, stop_rank=1))
    address = f"{_HOST}:{router_port}"
    config = folder / "router.yaml"
    document = {
        "router": {
            "listen": address,
            "schedulers": [scheduler_address(folder, number) for number in range(plan.engines)],
            "max_live_requests": 4 * plan.memory_requests,
            "max_wait_ms": 600_000,
            # Live requests are weighed: those that have ended and are kept for late readers are not among them.
            "retain_requests": 64,
            # 64 schedulers share one process here: reports that come late are the benchmark's doing, not a fault.
            "leave_out_after_ms": 60_000,
            "heartbeat_lost_s": 60,
        },
        "store": {"url": f"sqlite+aiosqlite:///{folder / 'relay.db'}" if with_store else ""},
        "log": {"level": "warning"},
    }
    config.write_text(yaml.safe_dump(document))
    argv = [sys.executable, "-m", "paceline_router", "--config", str(config)]
    for one in overrides:
        if one.startswith("router."):
            argv += ["--set", one]
    specs.append(ChildSpec("router", tuple(argv), address, folder / "router.log", stop_rank=0))
    return specs
