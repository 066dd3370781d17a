"""What planning costs: thousands of live requests in a table that moves as it does under load, policy by policy.

A round is one plan: the table's view, the policy, and what fits of its list, as the scheduler does it. Then, untimed,
the batch writes a token, a few requests end and others come. Planning at each step is more than a scheduler does.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from paceline_core.batch.plan import UNTIL_EVENT
from paceline_core.batch.planning import Decision, decide
from paceline_core.batch.policy import BatchPolicy
from paceline_core.batch.registry import POLICIES, make_policy
from paceline_core.batch.state import RunState
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import BatchView, Capacity, FloatArray
from paceline_core.engines.shipped import load_profile
from paceline_core.lengths import K, bin_of, cdf_from_probabilities
from paceline_core.slo import OnMiss, Slo, SloClass

_PROFILE: Final = "a100-80-8b"
_PLAN_LENGTH: Final = 256
"""As in the scheduler's configuration."""
_MOST_TRACED: Final = 10_000
_SHAPES: Final = 512
"""Length distributions that requests share."""


@dataclass(frozen=True, slots=True)
class SchedulerPlan:
    """How much to measure."""

    live: int = 10_000
    batch: int = 256
    rounds: int = 400
    """Plans of each policy that are timed, after a tenth more that are not."""
    churn: int = 2
    """Requests that end in each step, beside those whose answer is complete; as many come."""
    seed: int = 1
    policies: tuple[str, ...] = ()
    """Empty: all."""


@dataclass(slots=True, eq=False)
class _Request:
    """What the table wants to know of a request."""

    key: int
    slo: Slo
    tenant: str
    row: int = -1
    router_id: str = "router-0"


class World:
    """A table for `plan.live` requests on one engine, in overload."""

    def __init__(self, plan: SchedulerPlan) -> None:
        self._plan = plan
        self._rng = np.random.default_rng(plan.seed)
        profile = load_profile(_PROFILE)
        self.model = profile.model
        self.capacity = Capacity(
            max_batch=plan.batch,
            max_resident=2 * plan.batch,
            kv_tokens=profile.kv_capacity_tokens,
            max_context_tokens=16_384,
            prefill_chunk_tokens=64,
        )
        self._median = self._rng.lognormal(5.3, 0.8, _SHAPES)
        draws = np.clip(self._median[:, None] * self._rng.lognormal(0.0, 0.6, (_SHAPES, 64)), 1, 8_000)
        mass = np.zeros((_SHAPES, K))
        for shape in range(_SHAPES):
            np.add.at(mass[shape], bin_of(draws[shape].astype(np.int64)), 1.0)
        self._cdf: FloatArray = cdf_from_probabilities(mass)
        self.table = LiveTable[_Request]()
        self._end_at = np.zeros(0, dtype=np.int64)
        self._next_key = 1
        self.now_ms = 1e6
        self.step = 0
        self.planned_step = -1

    def fill(self) -> None:
        """Requests that came in the last minute."""
        for _ in range(self._plan.live):
            self._arrive(self.now_ms - float(self._rng.uniform(0, 60_000)))

    def view(self) -> BatchView:
        """What the scheduler would see now."""
        return self.table.view(self.capacity, self.model, step=self.step, planned_step=self.planned_step)

    def carry_out(self, rows: BatchView, decision: Decision) -> None:
        """A step of the engine with this decision; then as many requests come as ended."""
        table, ids = self.table, rows.row_id
        head = ids[decision.order[: decision.max_batch or self.capacity.max_batch]]
        running = ids[rows.state == RunState.RUNNING]
        table.state[running] = RunState.PAUSED
        gone = ids[decision.evict]
        table.state[gone], table.kv_tokens[gone] = RunState.EVICTED, 0
        table.state[head] = RunState.RUNNING
        table.generated[head] += 1
        table.kv_tokens[head] = table.prompt_tokens[head] + table.generated[head] - 1
        self.planned_step = self.step
        self.step += 1
        context = float(table.kv_tokens[head].sum())
        self.now_ms += self.model.decode_ms(len(head), context)
        table.last_token_ms[head] = self.now_ms
        ended = head[table.generated[head] >= self._end_at[head]]
        others = self._rng.choice(ids, min(self._plan.churn, len(ids)), replace=False)
        for row in np.unique(np.concatenate([ended, ids[decision.shed], others])).tolist():
            table.remove(table.at(row).key)
        while table.live < self._plan.live:
            self._arrive(self.now_ms)

    def _arrive(self, arrival_ms: float) -> None:
        rng, table = self._rng, self.table
        shape = int(rng.integers(_SHAPES))
        number = self._next_key
        self._next_key += 1
        kind = rng.random()
        on_miss = OnMiss.DROP if rng.random() < 0.2 else OnMiss.FINISH
        if kind < 0.3:
            slo = Slo(SloClass.LATENCY, ttft_ms=2_000.0, tbt_ms=100.0, on_miss=on_miss)
        elif kind < 0.6:
            slo = Slo(SloClass.DEADLINE, e2e_ms=float(rng.uniform(20_000, 600_000)), on_miss=on_miss)
        elif kind < 0.9:
            slo = Slo(
                SloClass.TASK, e2e_ms=float(rng.uniform(60_000, 600_000)), task_id=f"task-{number // 4}"
            )
        else:
            slo = Slo(SloClass.BEST_EFFORT)
        row = table.add(_Request(number, slo, f"tenant-{number % 16}"), self._cdf[shape], 8_192)
        table.arrival_ms[row] = arrival_ms
        table.prompt_tokens[row] = int(np.clip(rng.lognormal(6.0, 1.0), 1, 8_000))
        if slo.slo_class is SloClass.TASK:
            table.task_due_ms[row] = arrival_ms + slo.e2e_ms
            table.call_due_ms[row] = arrival_ms + slo.e2e_ms / 2
            table.task_rest_tokens[row] = float(rng.uniform(0, 1_000))
        if row >= len(self._end_at):
            self._end_at = (
                np.resize(self._end_at, table.rows) if len(self._end_at) else np.zeros(table.rows, int)
            )
        self._end_at[row] = int(np.clip(self._median[shape] * rng.lognormal(0.0, 0.6), 1, 8_000))


def measure_planning(plan: SchedulerPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Times in milliseconds by policy, and the bytes that a live request weighs in the scheduler's table.

    Raises ValueError on an unknown policy.
    """
    names = plan.policies or tuple(sorted(POLICIES))
    policies = [make_policy(name) for name in names]
    memory = table_bytes(plan)
    world = World(plan)
    world.fill()
    gc.collect()
    gc.freeze()  # as the service does
    try:
        figures = {}
        for policy in policies:
            figures[policy.name] = _measure(world, policy, plan.rounds)
            now = figures[policy.name]
            say(f"{policy.name}: P50 {now['plan_ms_p50']:.3f} ms, P99 {now['plan_ms_p99']:.3f} ms")
    finally:
        gc.unfreeze()
    return {"policies": figures, **memory, "live": plan.live, "plan": asdict(plan)}


def table_bytes(plan: SchedulerPlan) -> dict[str, float]:
    """Traced bytes of a table with `plan.live` requests, per request; at most 10,000 of them, for tracing is slow.

    Rows grow by an eighth: `bytes_per_row` is per row, free ones included.
    """
    plan = replace(plan, live=min(plan.live, _MOST_TRACED))
    world = World(plan)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        world.fill()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return {
        "bytes_per_live_request": round(grown / plan.live, 1),
        "bytes_per_row": round(grown / world.table.rows, 1),
    }


def _measure(world: World, policy: BatchPolicy, rounds: int) -> dict[str, float]:
    plan_ms, view_ms, cpu_ms, holds = (np.empty(rounds) for _ in range(4))
    for number in range(-max(1, rounds // 10), rounds):
        cpu_began, began = time.thread_time(), time.perf_counter()
        view = world.view()
        seen = time.perf_counter()
        decision = decide(policy, view, world.now_ms, _PLAN_LENGTH)
        ended, cpu_ended = time.perf_counter(), time.thread_time()
        if number >= 0:
            plan_ms[number], view_ms[number] = (ended - began) * 1000, (seen - began) * 1000
            cpu_ms[number] = (cpu_ended - cpu_began) * 1000
            holds[number] = min(decision.valid_for_steps, UNTIL_EVENT)
        world.carry_out(view, decision)
    return {
        **_figures("plan_ms", plan_ms),
        **_figures("plan_cpu_ms", cpu_ms),
        **_figures("view_ms", view_ms),
        "valid_for_steps_p50": float(np.median(holds)),
    }


def _figures(name: str, times: Sequence[float] | FloatArray) -> dict[str, float]:
    p50, p90, p99 = np.percentile(np.asarray(times), (50, 90, 99))
    return {
        f"{name}_p50": round(float(p50), 4),
        f"{name}_p90": round(float(p90), 4),
        f"{name}_p99": round(float(p99), 4),
    }
