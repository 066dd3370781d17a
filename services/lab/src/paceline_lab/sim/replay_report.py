"""A replay as a document and as a table. Every number of it is simulated, and says so."""

import math
from dataclasses import asdict
from typing import Any

from paceline_lab.machine import describe_machine
from paceline_lab.paired import Interval
from paceline_lab.sim.replay import Point, Replay, points_of

COLUMNS = (
    "B", "load", "jobs/s", "policy", "tok 1:1", "tok 1:8", "req/s", "attain", "latency", "deadline", "task",
    "TTFT p99 s", "wasted", "preempt", "raw", "vs first", "of bound",
)  # fmt: skip


def document(replay: Replay) -> dict[str, Any]:
    """Everything, as JSON takes it."""
    plan = replay.plan
    return {
        "kind": "paceline replay (simulated)",
        "workload": {**asdict(plan.workload), "mix": dict(plan.workload.mix)},
        "engines": [{**asdict(engine), "profile": engine.profile.name} for engine in plan.engines],
        "lengths": asdict(plan.lengths),
        "placement": plan.placement,
        "seeds": list(plan.seeds),
        "periods_s": asdict(replay.periods),
        "knees": {str(limit): asdict(knee) for limit, knee in replay.knees.items()},
        "points": [_point(point) for point in points_of(replay)],
        "rows": replay.rows,
        "machine": describe_machine(),
    }


def table_rows(replay: Replay) -> list[tuple[str, ...]]:
    """One row per policy and load, means over seeds with the half width of the 95 % interval."""
    return [_table_row(point) for point in points_of(replay)]


def _table_row(point: Point) -> tuple[str, ...]:
    def mean(name: str, digits: int) -> str:
        return shown(point.metrics[name], digits)

    def class_attainment(kind: str) -> str:
        values = [row["classes"][kind]["attainment"] for row in point.rows if kind in row["classes"]]
        return f"{sum(values) / len(values):.3f}" if values else "-"

    difference = point.against_first.get("token_goodput_1_1")
    return (
        str(point.max_batch),
        "-" if math.isnan(point.load) else f"{point.load:g}",
        f"{point.rate_per_s:.2f}",
        point.policy,
        mean("token_goodput_1_1", 0),
        f"{point.metrics['token_goodput_1_8'].mean:.0f}",
        mean("request_goodput", 2),
        f"{point.metrics['attainment'].mean:.3f}",
        class_attainment("latency"),
        class_attainment("deadline"),
        class_attainment("task"),
        _ttft(point),
        f"{_mean(point, 'wasted_tokens') / max(_mean(point, 'output_tokens'), 1):.2f}",
        f"{_mean(point, 'preemptions_per_call'):.2f}",
        f"{point.metrics['output_tokens_per_s'].mean:.0f}",
        "" if difference is None else _verdict(difference),
        _of_bound(point),
    )


def shown(value: Interval, digits: int) -> str:
    """A mean, and half its interval where there is one."""
    if math.isnan(value.half):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ±{value.half:.{digits}f}"


def _verdict(difference: Interval) -> str:
    mark = "better" if difference.above_zero else "worse" if difference.below_zero else ""
    return f"{difference.mean:+.0f} {mark}".strip()


def _mean(point: Point, name: str) -> float:
    return sum(float(row[name] or 0.0) for row in point.rows) / len(point.rows)


def _of_bound(point: Point) -> str:
    """Share of the fluid bound: token goodput 1:1, and requests."""
    shares = [row["share_of_bound"] for row in point.rows if "share_of_bound" in row]
    if not shares:
        return "-"
    tokens, requests = (
        sum(share[name] or 0.0 for share in shares) / len(shares)
        for name in ("token_goodput_1_1", "request_goodput")
    )
    return f"{tokens:.0%} {requests:.0%}"


def _ttft(point: Point) -> str:
    """P99 of the latency class, or of the first class there is; the worst seed."""
    worst = 0.0
    for row in point.rows:
        classes = row["classes"]
        kind = classes.get("latency") or next(iter(classes.values()))
        value = kind["ttft_ms"]["p99"]
        worst = max(worst, math.inf if value is None else value)
    return "never" if math.isinf(worst) else f"{worst / 1e3:.2f}"


def _point(point: Point) -> dict[str, Any]:
    def both(values: dict[str, Interval]) -> dict[str, Any]:
        return {
            name: {"mean": value.mean, "half": None if math.isnan(value.half) else value.half}
            for name, value in values.items()
        }

    return {
        "policy": point.policy,
        "max_batch": point.max_batch,
        "load": None if math.isnan(point.load) else point.load,
        "rate_per_s": point.rate_per_s,
        "seeds": len(point.rows),
        "metrics": both(point.metrics),
        "against_first": both(point.against_first),
    }
