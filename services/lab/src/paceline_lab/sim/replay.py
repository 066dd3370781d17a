"""Policies against loads: which cells to run, in how many processes, and what their rows say together."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from paceline_lab.paired import Interval, interval, paired
from paceline_lab.sim.cell import Cell, Periods, WorkloadSpec, longest_budget_s, run_bound, run_cell
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import LengthSpec
from paceline_lab.sim.knee import Knee, find_knee

WINDOW_BUDGETS = 10.0
"""Default length of the scored window, in longest budgets."""

METRICS = (
    "token_goodput_1_1",
    "token_goodput_1_8",
    "request_goodput",
    "attainment",
    "output_tokens_per_s",
)


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What to compare. The first policy is the one that the others are compared with."""

    workload: WorkloadSpec
    engines: tuple[EngineSpec, ...]
    policies: tuple[str, ...]
    batch_limits: tuple[int, ...]
    loads: tuple[float, ...] = ()
    """Multiples of the knee."""
    rates: tuple[float, ...] = ()
    """Jobs per second; instead of loads."""
    seeds: tuple[int, ...] = (1,)
    lengths: LengthSpec = field(default_factory=LengthSpec)
    placement: str = ""
    warmup_s: float = 0.0
    """0: one longest budget."""
    window_s: float = 0.0
    """0: WINDOW_BUDGETS longest budgets."""
    grace_s: float = 0.0
    """0: one longest budget."""
    jobs: int = 1
    """Processes."""
    knees: tuple[float, ...] = ()
    """Jobs per second by batch limit, where they are known; else they are found."""
    bound: bool = False
    """Compute the fluid bound of every load and seed too."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The rows of all cells, and the knees that loads are multiples of, by batch limit."""

    plan: ReplayPlan
    periods: Periods
    knees: dict[int, Knee]
    rows: list[dict[str, Any]]


def periods_of(plan: ReplayPlan) -> Periods:
    """Warm-up, window and grace of each run."""
    budget_s = longest_budget_s(plan.workload)
    return Periods(
        plan.warmup_s or budget_s, plan.window_s or WINDOW_BUDGETS * budget_s, plan.grace_s or budget_s
    )


def run_replay(
    plan: ReplayPlan,
    say: Callable[[str], None] = lambda _: None,
    on_row: Callable[[dict[str, Any], int, int], None] = lambda *_: None,
) -> Replay:
    """Find the knees, run every cell; rows come sorted by batch limit, load, policy and seed."""
    periods = periods_of(plan)
    knees: dict[int, Knee] = {}
    cells: list[Cell] = []
    for number, limit in enumerate(plan.batch_limits):
        engines = tuple(engine.batch(limit) for engine in plan.engines)
        if plan.rates:
            points = [(math.nan, rate) for rate in plan.rates]
        else:
            knee = knees[limit] = _knee(plan, number, engines, say)
            points = [(load, load * knee.rate_per_s) for load in plan.loads]
        cells += [
            Cell(policy, seed, rate, load, plan.workload, engines, periods, plan.lengths, plan.placement)
            for load, rate in points
            for seed in plan.seeds
            for policy in plan.policies
        ]
    rows: list[dict[str, Any]] = []
    for row in _run(run_cell, cells, plan.jobs):
        rows.append(row)
        on_row(row, len(rows), len(cells))
    if plan.bound:
        _add_bounds(cells, rows, plan.jobs, say)
    place = {policy: number for number, policy in enumerate(plan.policies)}
    rows.sort(key=lambda row: (row["max_batch"], row["rate_per_s"], place[row["policy"]], row["seed"]))
    return Replay(plan, periods, knees, rows)


def _knee(plan: ReplayPlan, number: int, engines: tuple[EngineSpec, ...], say: Callable[[str], None]) -> Knee:
    limit = engines[0].max_batch
    if plan.knees:
        return Knee(plan.knees[number], math.nan, math.nan)
    knee = find_knee(
        plan.workload,
        engines,
        plan.placement,
        lambda row: say(
            f"knee of batch limit {limit}: attainment {row['attainment'] or 0:.3f} at {row['rate_per_s']:.3f} jobs/s"
        ),
    )
    say(f"knee of batch limit {limit}: {knee.rate_per_s:.3f} jobs/s")
    return knee


def _add_bounds(
    cells: Sequence[Cell], rows: Sequence[dict[str, Any]], jobs: int, say: Callable[[str], None]
) -> None:
    """Put the bound into every row, and what share of it was reached."""
    distinct = {(cell.max_batch, round(cell.rate_per_s, 5), cell.seed): cell for cell in cells}
    say(f"computing {len(distinct)} bounds")
    bounds = dict(zip(distinct, _run(run_bound, [*distinct.values()], jobs, ordered=True), strict=True))
    for row in rows:
        bound = bounds[(row["max_batch"], row["rate_per_s"], row["seed"])]
        row["bound"] = bound
        row["share_of_bound"] = {name: row[name] / value if value else None for name, value in bound.items()}


def _run(
    work: Callable[[Cell], dict[str, Any]], cells: Sequence[Cell], jobs: int, *, ordered: bool = False
) -> Iterable[dict[str, Any]]:
    if jobs <= 1 or len(cells) <= 1:
        yield from map(work, cells)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, cell) for cell in cells]
        for done in futures if ordered else as_completed(futures):
            yield done.result()


@dataclass(frozen=True, slots=True)
class Point:
    """A policy at a load, over the seeds."""

    policy: str
    max_batch: int
    load: float
    rate_per_s: float
    metrics: dict[str, Interval]
    against_first: dict[str, Interval]
    """Paired differences to the first policy, this one's less that one's; empty for the first."""
    rows: tuple[dict[str, Any], ...]


def points_of(replay: Replay) -> list[Point]:
    """Means with 95 % intervals, and paired differences, in the order of the rows."""
    groups: dict[tuple[int, float, str], list[dict[str, Any]]] = {}
    for row in replay.rows:
        groups.setdefault((row["max_batch"], row["rate_per_s"], row["policy"]), []).append(row)
    first = replay.plan.policies[0]
    points = []
    for (batch, rate, policy), rows in groups.items():
        base = groups[(batch, rate, first)]
        points.append(
            Point(
                policy=policy,
                max_batch=batch,
                load=math.nan if rows[0]["load"] is None else rows[0]["load"],
                rate_per_s=rate,
                metrics={name: interval(_column(rows, name)) for name in METRICS},
                against_first={}
                if policy == first
                else {name: paired(_column(rows, name), _column(base, name)) for name in METRICS},
                rows=tuple(rows),
            )
        )
    return points


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name] or 0.0) for row in rows]
