"""Tables and plots of a task evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS: Final = "paceline"
_METHODS: Final = (OURS, "app-mean", "jitserve", "jitserve-stamps", "jitserve-artifact", "equal")
_POINTS: Final = ("first", "25", "50", "75")
_LABELS: Final = ("first stage", "1/4", "1/2", "3/4")
_COLUMNS: Final = (
    ("log_error", "log error of what comes"),
    ("total_log_error", "log error of the whole"),
    ("share_error", "share error"),
    ("pressure", "pressure"),
    ("budget_met", "budget met"),
    ("coverage_p50", "P50"),
    ("coverage_p90", "P90"),
    ("width_log_p50_p90", "width"),
    ("last_stage_brier", "last-stage Brier"),
)

Result = dict[str, Any]


def write_report(result: Result, out: Path) -> None:
    """tasks.md, tasks-error.png and tasks-cold-start.png in `out`."""
    (out / "tasks.md").write_text("\n".join(_text(result)) + "\n")
    _plot_errors(result, out / "tasks-error.png")
    _plot_cold_start(result, out / "tasks-cold-start.png")


def _text(result: Result) -> list[str]:
    lines = [
        "# Task forecasts on held-out tasks",
        "",
        f"{result['folds']} folds by task group, seed {result['seed']}.",
        "Errors are |log(1 + forecast) - log(1 + truth)| of the P50 of critical-path tokens to come, after each stage",
        "that is not the last. Share error: |share of the current stage in the work to come - truth| at its begin.",
        "Pressure: the mean speed at which work is served when each stage takes what its sub-deadline gives it,",
        "1 with true shares. Coverage and width (log P90 - log P50) at the begin of each stage.",
        "Means over families of equal weight:",
        "",
        *_table(("method", *(label for _, label in _COLUMNS)), _rows(result["overall"])),
        "",
    ]
    for missing in result["missing"]:
        lines += [f"Missing: {missing}", ""]
    for family, methods in result["families"].items():
        lines += [
            f"## {family}",
            "",
            *_table(("method", *(label for _, label in _COLUMNS)), _rows(methods)),
            "",
        ]
        ours = methods.get(OURS, {})
        if "shape_match" in ours:
            lines += [
                f"Shape known from half of the stages: {ours['shape_match']:.0%} of tasks; "
                f"{ours['shape_repeated']:.0%} have a shape that history holds.",
                "",
            ]
    speed = result["speed"]
    lines += [
        "## Cost",
        "",
        f"{speed['bytes_a_pattern']} bytes a pattern; {speed['patterns']} patterns: "
        + "; ".join(
            f"{size} partial: graph P50 {speed[f'batch{size}']['graph_ms']['p50']:.2f} ms, whole forecast "
            f"{speed[f'batch{size}']['forecast_ms']['p50']:.2f} ms"
            for size in (1, 32)
        ),
    ]
    return lines


def _rows(methods: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, *(_cell(methods[name].get(column)) for column, _ in _COLUMNS))
        for name in _METHODS
        if name in methods
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _plot_errors(result: Result, path: Path) -> None:
    """Error by how much of the task was seen: what comes (left) and the whole task (right), each family a line."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, name, title in zip(
        axes, ("log_error", "total_log_error"), ("what still comes", "the whole task"), strict=True
    ):
        for family, methods in sorted(result["families"].items()):
            curve = methods.get(OURS, {}).get(f"{name}_by_progress", {})
            if len(curve) > 1:
                at = [i for i, point in enumerate(_POINTS) if point in curve]
                axis.plot(at, [curve[_POINTS[i]] for i in at], marker="o", label=family)
        axis.set_xticks(range(len(_POINTS)), _LABELS)
        axis.set_xlabel("stages seen")
        axis.set_title(f"log error of {title}")
        axis.set_ylim(bottom=0)
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_cold_start(result: Result, path: Path) -> None:
    """Error half-way by how many tasks of the application were learned."""
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    families = sorted({row["family"] for row in result["cold_start"]})
    for family in families:
        rows = [row for row in result["cold_start"] if row["family"] == family]
        axis.plot(
            [row["learned"] for row in rows], [row["log_error"] for row in rows], marker="o", label=family
        )
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlabel("tasks of the application learned")
    axis.set_ylabel("log error of what still comes, half-way")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
