"""`paceline bench predictor`: the pipeline in process, and a predictor process over gRPC."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline_cli.bench.processes import running_processes
from paceline_cli.stack.child import ChildSpec
from paceline_cli.stack.ports import free_ports
from paceline_lab.bench.predictor import PredictorPlan, measure_in_process, plan_dict
from paceline_lab.bench.predictor_calls import measure_calls
from paceline_lab.machine import describe_machine

_START_TIMEOUT_S = 60.0
_HOST = "127.0.0.1"


async def bench_predictor(
    plan: PredictorPlan, length_model: str, overrides: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Any]:
    """Start, measure, end. The two parts run one after the other."""
    in_process = await measure_in_process(plan, length_model, say)
    with tempfile.TemporaryDirectory(prefix="paceline-predictor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        spec = _process(folder, length_model, overrides)
        async with running_processes([spec], folder, timeout_s=_START_TIMEOUT_S) as supervisor:
            pid = supervisor.children[0].pid or 0
            calls = await measure_calls(plan, spec.address, pid, say)
    return {
        "benchmark": "predictor",
        **in_process,
        **calls,
        "plan": plan_dict(plan),
        "machine": describe_machine(),
    }


def _process(folder: Path, length_model: str, overrides: tuple[str, ...]) -> ChildSpec:
    (port,) = free_ports(_HOST, 1)
    address = f"{_HOST}:{port}"
    argv = [sys.executable, "-m", "paceline_predictor"]
    for one in (
        f"predictor.listen={address}",
        f"predictor.state_path={folder / 'state.bin'}",
        f'predictor.length_model="{length_model}"',
        'store.url=""',
        "log.level=warning",
        *overrides,
    ):
        argv += ["--set", one]
    return ChildSpec("predictor", tuple(argv), address, folder / "predictor.log", stop_rank=0)
