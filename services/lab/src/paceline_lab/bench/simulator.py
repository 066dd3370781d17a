"""What a simulated hour costs: events a second, and the whole run on one core."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_lab.machine import describe_machine
from paceline_lab.sim.cell import Cell, Periods, WorkloadSpec, knowledge_of, run_cell
from paceline_lab.sim.engine_spec import parse_engines


@dataclass(frozen=True, slots=True)
class SimulatorPlan:
    """An hour of sixteen engines. A job is a request or a task of several: by default some 14,000 requests."""

    policies: tuple[str, ...] = ("sarathi", "gmax", "pace")
    engines: str = "a100-80-8b:16"
    rate_per_s: float = 1.0
    simulated_s: float = 3600.0
    placement: str = "least-predicted"
    seed: int = 1


def bench_simulator(plan: SimulatorPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """One run for each policy. Raises ValueError for what is not known."""
    workload = WorkloadSpec()
    knowledge_of(workload)  # learned before the clock starts
    engines = parse_engines(plan.engines)
    results = []
    for policy in plan.policies:
        periods = Periods(0.0, plan.simulated_s, 0.0)
        placement = plan.placement if len(engines) > 1 else ""
        row = run_cell(
            Cell(
                policy,
                plan.seed,
                plan.rate_per_s,
                float("nan"),
                workload,
                engines,
                periods,
                placement=placement,
            )
        )
        result = {
            "policy": policy,
            "jobs": row["jobs"],
            "requests": row["calls"],
            "wall_s": row["wall_s"],
            "cpu_s": row["cpu_s"],
            "events": row["events"],
            "events_per_s": row["events"] / row["wall_s"],
            "steps": row["steps"],
            "plans": row["plans"],
            "simulated_over_wall": row["simulated_s"] / row["wall_s"],
            "attainment": row["attainment"],
        }
        say(f"{policy}: {result['requests']} requests, {result['events']} events in {result['wall_s']:.1f} s")
        results.append(result)
    return {
        "kind": "paceline bench simulator",
        "engines": plan.engines,
        "simulated_s": plan.simulated_s,
        "rate_per_s": plan.rate_per_s,
        "placement": plan.placement,
        "seed": plan.seed,
        "results": results,
        "wall_s_worst": max(_column(results, "wall_s")),
        "events_per_s_least": min(_column(results, "events_per_s")),
        "machine": describe_machine(),
    }


def _column(results: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(result[name]) for result in results]
