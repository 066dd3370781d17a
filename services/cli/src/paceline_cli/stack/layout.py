"""From one configuration to the processes of the stack: names, addresses, command lines."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline_cli.stack.child import ChildSpec
from paceline_cli.stack.ports import free_ports, require_free
from paceline_cli.stack.settings import UpConfig
from paceline_cli.stack.statefile import StateDir

# Stopped in this order: no new work, then the ledger is written, then those who serve it.
_STOP_RANK = {"gateway": 0, "router": 1, "scheduler": 2, "predictor": 2, "executor": 3}
_MODULES = {
    "gateway": "paceline_gateway",
    "router": "paceline_router",
    "scheduler": "paceline_scheduler",
    "predictor": "paceline_predictor",
    "executor": "paceline_executor",
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything listens, `host:port`."""

    gateway: str
    router: str
    predictor: str
    schedulers: tuple[str, ...]
    executors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The stack to start."""

    addresses: Addresses
    children: tuple[ChildSpec, ...]


def engine_ids(count: int, backend: str) -> tuple[str, ...]:
    """Names of the engines: `cpu-0`, `cpu-1`, ... or `sim-0`, ..."""
    prefix = "sim" if backend == "simulated" else "cpu"
    return tuple(f"{prefix}-{index}" for index in range(count))


def wanted_ports(up: UpConfig) -> dict[str, int]:
    """The fixed ports by who wants them: gateway, router, predictor, schedulers, executors, in this order."""
    ports = {"gateway": up.gateway_port, "router": up.router_port, "predictor": up.predictor_port}
    ports |= {f"scheduler {index}": up.scheduler_port + index for index in range(up.engines)}
    ports |= {f"executor {index}": up.executor_port + index for index in range(up.engines)}
    return ports


def draw_addresses(up: UpConfig) -> Addresses:
    """The ports of the configuration, checked to be free, or free ones. Raises `PortConflictError`."""
    host, count = up.host, up.engines
    wanted = wanted_ports(up)
    if up.ports == "auto":
        ports = free_ports(host, len(wanted))
    else:
        require_free(host, wanted)
        ports = list(wanted.values())
    where = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports]
    return Addresses(where[0], where[1], where[2], tuple(where[3 : 3 + count]), tuple(where[3 + count :]))


def lay_out(
    up: UpConfig,
    addresses: Addresses,
    state: StateDir,
    config: Path,
    *,
    backend: str,
    python: str = sys.executable,
) -> Layout:
    """Command line of every process; `config` is the effective configuration file."""
    children: list[ChildSpec] = []

    def add(
        role: str, suffix: str, address: str, sets: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        name = f"{role}-{suffix}" if suffix else role
        argv = [python, "-m", _MODULES[role], "--config", str(config)]
        for key, value in sets.items():
            argv += ["--set", f"{role}.{key}={value}"]
        children.append(
            ChildSpec(name, tuple(argv), address, state.logs / f"{name}.log", _STOP_RANK[role], environment)
        )

    # OpenMP barriers collapse when threads wait for cores, so an engine never gets more threads than it declares.
    engine_environment = {"OMP_WAIT_POLICY": "passive"}
    ids = engine_ids(up.engines, backend)
    for index, engine_id in enumerate(ids):
        sets = {"listen": addresses.executors[index], "engine_id": engine_id}
        if index < len(up.speed_factors):
            sets["speed_factor"] = str(up.speed_factors[index])
        add("executor", engine_id, addresses.executors[index], sets, engine_environment)
    for index, engine_id in enumerate(ids):
        sets = {
            "listen": addresses.schedulers[index],
            "scheduler_id": f"scheduler-{engine_id}",
            "executor": addresses.executors[index],
        }
        add("scheduler", engine_id, addresses.schedulers[index], sets, {})
    add("predictor", "", addresses.predictor, {"listen": addresses.predictor}, {})
    router = {
        "listen": addresses.router,
        "schedulers": yaml_list(addresses.schedulers),
        "predictor": addresses.predictor,
    }
    add("router", "", addresses.router, router, {})
    add("gateway", "", addresses.gateway, {"listen": addresses.gateway, "router": addresses.router}, {})
    return Layout(addresses, tuple(children))


def yaml_list(items: Sequence[str]) -> str:
    """A list as `--set` reads it."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"
