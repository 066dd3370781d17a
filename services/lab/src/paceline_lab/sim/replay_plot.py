"""A replay as pictures: goodput against load with its intervals, and attainment by class."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from paceline_lab.sim.replay import Point, Replay, points_of

matplotlib.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

# Colours that stay apart for readers who do not see all of them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_MARKERS = "os^Dv*PX"
_PANELS = (
    ("token_goodput_1_1", "tokens/s in time (1:1)"),
    ("token_goodput_1_8", "tokens/s in time (prompt 1 : output 8)"),
    ("request_goodput", "requests/s in time"),
    ("attainment", "attainment"),
)
_CLASSES = ("latency", "deadline", "task")


def save_plots(replay: Replay, folder: Path) -> list[Path]:
    """Two pictures for each batch limit."""
    points = points_of(replay)
    paths: list[Path] = []
    for limit in replay.plan.batch_limits:
        mine = [point for point in points if point.max_batch == limit]
        for name, draw in (("goodput", _goodput), ("attainment", _attainment)):
            path = folder / f"{name}-b{limit}.png"
            draw(mine, replay, path)
            paths.append(path)
    return paths


def _x(point: Point) -> float:
    return point.rate_per_s if math.isnan(point.load) else point.load


def _axis(points: Sequence[Point]) -> str:
    return "jobs/s" if math.isnan(points[0].load) else "load (1 = knee of sarathi)"


def _goodput(points: Sequence[Point], replay: Replay, path: Path) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
    try:
        for axes, (metric, label) in zip(panels.flat, _PANELS, strict=True):
            for number, policy in enumerate(replay.plan.policies):
                mine = sorted((point for point in points if point.policy == policy), key=_x)
                halves = np.nan_to_num([point.metrics[metric].half for point in mine])
                axes.errorbar(
                    [_x(point) for point in mine],
                    [point.metrics[metric].mean for point in mine],
                    yerr=halves,
                    label=policy,
                    color=_COLOURS[number % len(_COLOURS)],
                    marker=_MARKERS[number % len(_MARKERS)],
                    markersize=4,
                    capsize=2,
                    linewidth=1.2,
                )
            _draw_bound(axes, points, metric)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        for axes in panels[1]:
            axes.set_xlabel(_axis(points))
        panels[0][0].legend(fontsize=8)
        figure.suptitle(_title(points, replay))
        figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)


def _draw_bound(axes: Any, points: Sequence[Point], metric: str) -> None:
    bounds: dict[float, list[float]] = {}
    for point in points:
        for row in point.rows:
            if metric in row.get("bound", {}):
                bounds.setdefault(_x(point), []).append(row["bound"][metric])
    if bounds:
        xs = sorted(bounds)
        axes.plot(xs, [np.mean(bounds[x]) for x in xs], "--", color="0.5", linewidth=1, label="fluid bound")


def _attainment(points: Sequence[Point], replay: Replay, path: Path) -> None:
    loads = sorted({_x(point) for point in points})
    policies = replay.plan.policies
    figure, panels = plt.subplots(
        len(_CLASSES), 1, figsize=(12, 8), sharex=True, sharey=True, layout="constrained"
    )
    try:
        for axes, kind in zip(panels, _CLASSES, strict=True):
            for number, policy in enumerate(policies):
                heights = [_class_attainment(points, policy, load, kind) for load in loads]
                places = np.arange(len(loads)) + (number - (len(policies) - 1) / 2) * 0.8 / len(policies)
                axes.bar(
                    places, heights, 0.8 / len(policies), label=policy, color=_COLOURS[number % len(_COLOURS)]
                )
            axes.set_ylabel(f"{kind}: attainment")
            axes.set_ylim(0, 1)
            axes.grid(axis="y", alpha=0.3)
        panels[-1].set_xticks(range(len(loads)), [f"{load:g}" for load in loads])
        panels[-1].set_xlabel(_axis(points))
        panels[0].legend(fontsize=8, ncols=min(6, len(policies)))
        figure.suptitle(_title(points, replay))
        figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)


def _class_attainment(points: Sequence[Point], policy: str, load: float, kind: str) -> float:
    values = [
        row["classes"][kind]["attainment"] or 0.0
        for point in points
        if point.policy == policy and _x(point) == load
        for row in point.rows
        if kind in row["classes"]
    ]
    return float(np.mean(values)) if values else 0.0


def _title(points: Sequence[Point], replay: Replay) -> str:
    names = sorted({engine.profile.name for engine in replay.plan.engines})
    return (
        f"simulated: {replay.plan.workload.name} on {len(replay.plan.engines)} x {', '.join(names)}, "
        f"batch limit {points[0].max_batch}, {len(replay.plan.seeds)} seeds"
    )
