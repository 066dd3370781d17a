"""`paceline bench line`: a private stack with one engine, and the same engine in process beside it."""

import os
import sys
from collections.abc import Callable
from typing import Any

from paceline.router.v1 import router_pb2_grpc
from paceline_cli.commands.up import model_name
from paceline_cli.stack.private import private_stack
from paceline_executor.config import ExecutorConfig
from paceline_lab.bench.line import EngineAloneProcess, LinePlan, line_result, measure_line
from paceline_lab.machine import describe_machine
from paceline_runtime.channel import channel


async def bench_line(
    plan: LinePlan, overrides: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Any]:
    """Start, measure, end."""
    async with private_stack(overrides=("up.engines=1", *overrides), on_event=say) as stack:
        executor = ExecutorConfig.model_validate(stack.tree.get("executor", {}))
        command = [sys.executable, "-m", "paceline_lab.bench.engine_alone", executor.model_dump_json()]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        async with (
            EngineAloneProcess(command, environment) as alone,
            channel(stack.addresses.router) as connection,
        ):
            stub = router_pb2_grpc.RouterServiceStub(connection)
            model = model_name(executor.model_dump())
            samples = await measure_line(plan, alone, stub, stack.addresses.gateway, model, say)
        if any(child.restarts for child in stack.supervisor.children):
            raise RuntimeError(
                "a process of the stack was restarted during the benchmark: its figures are void"
            )
    return {
        "benchmark": "line",
        **line_result(plan, samples),
        "model": model,
        "engine": {"max_batch": executor.max_batch, "threads": executor.threads, "backend": executor.backend},
        "machine": describe_machine(),
    }
