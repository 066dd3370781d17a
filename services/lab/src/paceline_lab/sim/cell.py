"""One cell of a replay: a policy, a load, a batch limit and a seed, simulated and scored."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from paceline_core.batch.policy import BatchPolicy
from paceline_core.batch.registry import ParamValue, make_policy
from paceline_core.placement.policy import PlacementPolicy
from paceline_core.slo import SloClass
from paceline_lab.live.report import totals
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import LengthSpec, estimates_for
from paceline_lab.sim.knowledge import Knowledge, learn
from paceline_lab.sim.moves import Moves
from paceline_lab.sim.score import Window, p_meet_bins, score
from paceline_lab.sim.simulator import Setting, simulate
from paceline_lab.workloads.registry import make_workload
from paceline_lab.workloads.trace import Workload

TRAINING_SEED: Final = 770_001
"""Of the split that predictors and forecasts learn from; no run has it."""
_TRAINING_JOBS: Final = 3000


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A workload but for its rate, length and seed."""

    name: str = "jitserve-mix"
    cv: float = 1.0
    slo_scale: float = 1.0
    mix: tuple[tuple[str, float], ...] = ()
    data: str = ""

    def make(self, rate_per_s: float, duration_s: float, seed: int) -> Workload:
        """The workload. Raises UnknownWorkloadError and ValueError."""
        return make_workload(
            self.name,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
            seed=seed,
            cv=self.cv,
            slo_scale=self.slo_scale,
            mix=dict(self.mix) or None,
            data=Path(self.data) if self.data else None,
        )

    def training(self) -> Workload:
        """What was known before: jobs of another seed, enough of them."""
        return self.make(1.0, float(_TRAINING_JOBS), TRAINING_SEED)


@dataclass(frozen=True, slots=True)
class Periods:
    """What is simulated, seconds; jobs of the window are scored."""

    warmup_s: float
    window_s: float
    grace_s: float
    grace_arrivals: bool = True
    """Jobs arrive all the time; else none does after the window."""

    @property
    def duration_s(self) -> float:
        """All of it."""
        return self.warmup_s + self.window_s + self.grace_s

    @property
    def arrivals_s(self) -> float:
        """As long jobs arrive."""
        return self.duration_s if self.grace_arrivals else self.warmup_s + self.window_s

    @property
    def window(self) -> Window:
        """The scored part."""
        return Window(self.warmup_s * 1e3, (self.warmup_s + self.window_s) * 1e3)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. `load`: a multiple of the knee, NaN where the rate was given."""

    policy: str
    """`name`, or with parameters `name:key=value:key=value`."""
    seed: int
    rate_per_s: float
    load: float
    workload: WorkloadSpec
    engines: tuple[EngineSpec, ...]
    periods: Periods
    lengths: LengthSpec = field(default_factory=LengthSpec)
    placement: str = ""
    """A placement policy, written in the same way."""
    moves: Moves = Moves.OFF

    @property
    def max_batch(self) -> int:
        """Of the first engine."""
        return self.engines[0].max_batch


@lru_cache(maxsize=4)
def knowledge_of(workload: WorkloadSpec) -> Knowledge:
    """What a training split teaches; learned once per process."""
    return learn(workload.training())


@lru_cache(maxsize=4)
def _workload(spec: WorkloadSpec, rate_per_s: float, duration_s: float, seed: int) -> Workload:
    return spec.make(rate_per_s, duration_s, seed)


@lru_cache(maxsize=16)
def longest_budget_s(workload: WorkloadSpec) -> float:
    """The longest time to the last token's due, of a whole task too, that 99 in 100 jobs stay within."""
    budgets = sorted(
        job.slo.token_due_ms(job.output_tokens - 1)
        for job in workload.training().jobs
        if job.slo.slo_class is not SloClass.BEST_EFFORT
    )
    if not budgets:
        raise ValueError(f"{workload.name}: no job has an objective")
    return budgets[int(0.99 * (len(budgets) - 1))] / 1e3


def batch_policy(text: str) -> BatchPolicy:
    """The policy of `name` or `name:key=value:...`. Raises ValueError."""
    name, params = _parsed(text)
    return make_policy(name, params)


def placement_policy(text: str) -> PlacementPolicy | None:
    """The placement policy of `name` or `name:key=value:...`; None for nothing. Raises ValueError."""
    if not text:
        return None
    from paceline_core.placement import registry

    name, params = _parsed(text)
    return registry.make_policy(name, params)


def _parsed(text: str) -> tuple[str, dict[str, ParamValue]]:
    name, *settings = text.split(":")
    params: dict[str, ParamValue] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write policy:key=value")
        params[key] = yaml.safe_load(value)
    return name, params


def run_cell(cell: Cell, on_progress: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
    """Simulate and score; a flat row of figures, as JSON takes it (what is not finite is None)."""
    workload = _workload(cell.workload, cell.rate_per_s, cell.periods.arrivals_s, cell.seed)
    knowledge = knowledge_of(cell.workload)

    use = batch_policy(cell.policy).estimates
    setting = Setting(
        workload=workload,
        engines=cell.engines,
        policy=lambda: batch_policy(cell.policy),
        estimates=estimates_for(workload, knowledge, cell.lengths, use, cell.seed),
        knowledge=knowledge,
        placement=placement_policy(cell.placement),
        moves=cell.moves,
        end_ms=cell.periods.duration_s * 1e3,
    )
    began, cpu_began = time.perf_counter(), time.process_time()
    result = simulate(setting, on_progress)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    scored = score(result, cell.periods.window)
    total = totals(scored.classes)
    row = {
        "policy": cell.policy,
        "placement": cell.placement,
        "seed": cell.seed,
        "load": cell.load,
        "rate_per_s": cell.rate_per_s,
        "max_batch": cell.max_batch,
        **total,
        "preemptions_per_call": scored.preemptions_per_call,
        "recomputed_tokens": scored.recomputed_tokens,
        "moves": dict(result.moves),
        "p_meet_bins": p_meet_bins(result, cell.periods.window),
        "shed": scored.shed,
        "cancelled": scored.cancelled,
        "starvation_ms": scored.starvation_ms,
        "tenant_min_share": scored.fairness.min_share,
        "tenant_jain": scored.fairness.jain,
        "output_tokens_per_s": scored.output_tokens_per_s,
        "busy_share": sum(engine.busy_ms for engine in result.engines)
        / len(result.engines)
        / max(result.now_ms, 1.0),
        "classes": {
            kind.slo_class.name.lower(): {
                **asdict(kind),
                "slo_class": kind.slo_class.name.lower(),
                "attainment": kind.attainment,
            }
            for kind in scored.classes
        },
        "calls": workload.calls,
        "events": result.events,
        "steps": sum(engine.steps for engine in result.engines),
        "plans": sum(engine.plans for engine in result.engines),
        "simulated_s": result.now_ms / 1e3,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
    }
    finite: dict[str, Any] = _finite(row)
    return finite


def run_bound(cell: Cell) -> dict[str, float]:
    """Fluid bounds on what any policy can reach in the cell, per second of its window. Needs scipy."""
    from paceline_lab.bounds.capacity import EngineGroup
    from paceline_lab.bounds.fluid import fluid_bound

    # A plan may prefill a whole prompt in one step; prefixes are computed anew here.
    groups = [
        EngineGroup(spec.profile, count, spec.max_batch, spec.max_context_tokens)
        for spec, count in Counter(cell.engines).items()
    ]
    window = cell.periods.window
    bound = fluid_bound(
        _workload(cell.workload, cell.rate_per_s, cell.periods.arrivals_s, cell.seed),
        groups,
        begin_ms=window.begin_ms,
        end_ms=window.end_ms,
        stop_ms=cell.periods.duration_s * 1e3,
        prefix_reuse=False,
    )
    return {
        "token_goodput_1_1": bound.tokens_1_1 / window.seconds,
        "token_goodput_1_8": bound.tokens_1_8 / window.seconds,
        "request_goodput": bound.requests / window.seconds,
    }


def _finite(value: Mapping[str, Any] | Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
