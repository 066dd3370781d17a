"""`paceline bench migration`: a private stack with two engines of the same model."""

from collections.abc import Callable
from typing import Any

from paceline.router.v1 import router_pb2_grpc
from paceline_cli.stack.private import private_stack
from paceline_lab.bench.migration import MigrationPlan, measure_migration, migration_result
from paceline_lab.machine import describe_machine
from paceline_runtime.channel import channel


async def bench_migration(
    plan: MigrationPlan, overrides: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Any]:
    """Start, measure, end."""
    context_tokens = max(plan.contexts) + 1024
    # Prompts differ, but the trials of one prompt must not help each other; tokens come one by one, as they are made.
    own = (
        "executor.prefix_reuse=none",
        f"executor.context_tokens={context_tokens}",
        "router.coalesce_ms=0",
        "store.url=''",
    )
    async with private_stack(overrides=("up.engines=2", *own, *overrides), on_event=say) as stack:
        async with channel(stack.addresses.router) as connection:
            stub = router_pb2_grpc.RouterServiceStub(connection)
            trials = await measure_migration(plan, stub, "", say)
        if any(child.restarts for child in stack.supervisor.children):
            raise RuntimeError("a process was restarted during the benchmark: its figures are void")
    return {"benchmark": "migration", **migration_result(plan, trials), "machine": describe_machine()}
