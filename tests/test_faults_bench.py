"""The fault benchmark, bounded: parts die under load, and no client can tell. On SQLite and on PostgreSQL."""

from typing import Any

import pytest

from paceline_cli.bench.faults import run_faults
from paceline_lab.bench.faults.plan import Fault, FaultPlan

PLAN = FaultPlan(
    requests=200,
    at_once=16,
    prompts=24,
    output_tokens=(12, 48),
    outage_s=1.0,
    patience_s=240.0,
    faults={
        "async": (Fault.EXECUTOR, Fault.CUT, Fault.ROUTER),
        "sync": (Fault.SCHEDULER, Fault.STORE_OUTAGE, Fault.ROUTER_AND_EXECUTOR),
    },
)


@pytest.mark.timeout(900)  # on a slow machine each of five restarts takes half a minute
@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def test_no_client_can_tell_that_parts_died(store: str) -> None:
    told: list[str] = []
    result = await run_faults(
        PLAN,
        engines=2,
        store=store,
        model="simulated",
        overrides=("executor.simulated.time_scale=1",),
        say=told.append,
        progress=lambda stage, done, total: None,
    )
    assert result["damaged"] == 0, (result["damaged_requests"], result["rows"], told)
    rows: dict[str, dict[str, Any]] = {row["durability"]: row for row in result["rows"]}
    assert rows.keys() == {"async", "sync"}
    for mode, faults in PLAN.faults.items():
        assert rows[mode]["requests"] == 100
        assert rows[mode]["faults"] == {fault.value: 1 for fault in faults}
        # The faults met streams: held clients stood in the middle of theirs.
        assert rows[mode]["hit_streaming"] >= PLAN.held * len(faults)
        assert rows[mode]["replayed_requests"] > 0
        assert rows[mode]["reattached"] > 0
        assert {"plain", "slow", "held", "cancel"} == rows[mode]["behaviours"].keys()
    hit = {name for record in result["faults"] for name in record["hit"]}
    assert {"router"} < hit
    assert all(pid > 0 for record in result["faults"] for pid in record["hit"].values())
    assert len(told) == sum(map(len, PLAN.faults.values()))
