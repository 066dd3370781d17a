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
    ("relative_error", "error / whole work"),
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
        f"{result['folds']} folds by task group, {result['scored_folds']} of them scored, seed {result['seed']}.",
        f"Of each family at most {result['history_a_family']} tasks are learned and {result['tests_a_family']}",
        "scored a fold, drawn by the seed.",
        "Errors are |log(1 + forecast) - log(1 + truth)| of the P50 of critical-path tokens to come, after each stage",
        "that is not the last. Share error: |share of the current stage in the work to come - truth| at its begin.",
        "Pressure: the mean speed at which work is served when each stage takes what its sub-deadline gives it,",
        "1 with true shares. Coverage and width (log P90 - log P50) at the begin of each stage.",
        "Means over families of equal weight:",
        "",
        *table_lines(("method", *(label for _, label in _COLUMNS)), _rows(result["overall"])),
        "",
    ]
    for missing in result["missing"]:
        lines += [f"Missing: {missing}", ""]
    for family, methods in result["families"].items():
        lines += [
            f"## {family}",
            "",
            *table_lines(("method", *(label for _, label in _COLUMNS)), _rows(methods)),
            "",
        ]
    lines += _shape_lines(result) + _progress_lines(result)
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


def _shape_lines(result: Result) -> list[str]:
    """Top-1 match of the shape beside what history alone knows."""
    families = {f: m[OURS] for f, m in result["families"].items() if "shape_match" in m.get(OURS, {})}
    rows = [
        (
            family,
            *(
                f"{ours[name]:.0%}"
                for name in ("shape_match", "shape_knowable", "shape_hindsight", "shape_repeated")
            ),
            "yes" if ours["shape_knowable"] >= result["knowable"] else "",
        )
        for family, ours in sorted(families.items())
    ]
    overall = result["overall"].get(OURS, {})
    found = overall.get("shape_match_repeated_families")
    wider = overall.get("shape_match_occurred_families")
    return [
        "## Shapes from half of the stages",
        "",
        "A shape is the sequence of stages: who was called, and whether alone or side by side. Knowable: how often the",
        "commonest completion of that half among the application's tasks in the other folds is right; a family with",
        f"repeated shapes is one where that is at least {result['knowable']:.0%}. That shapes occurred before",
        "does not make them foretellable. Hindsight: the same among the held-out tasks themselves; it is flattered,",
        "since half of a task tells its length.",
        "",
        *table_lines(
            ("family", "ours", "knowable", "hindsight", "shape occurred before", "repeated shapes"), rows
        ),
        "",
        f"Families with repeated shapes: {'none' if found is None else f'{found:.0%}'}; families of which 90 % of the",
        f"shapes occurred before: {'none' if wider is None else f'{wider:.0%}'}.",
        "",
    ]


def _progress_lines(result: Result) -> list[str]:
    """Errors at equal parts of a task, the same tasks at each point."""
    lines = ["## Errors by how much of a task was seen", ""]
    for name, title in (
        ("log_error", "Log error of what comes (near the end a few tokens are left, so it measures noise)"),
        (
            "relative_error",
            "|forecast - truth| of what comes over the work of the whole task: what a deadline feels",
        ),
    ):
        rows = []
        for family, methods in sorted(result["families"].items()):
            curve = methods.get(OURS, {}).get(f"{name}_by_progress", {})
            if len(curve) > 1:
                rows.append((family, *(_cell(curve.get(point)) for point in _POINTS)))
        lines += [f"{title}:", "", *table_lines(("family", *_LABELS), rows), ""]
    rows = []
    for family, methods in sorted(result["families"].items()):
        curve = methods.get(OURS, {}).get("relative_error_same_tasks", {})
        rows.append((family, *(_cell(curve.get(str(stage))) for stage in range(1, 11))))
    lines += [
        "The same after each stage, of the half of each family's tasks that have more stages than the last one told,",
        "however long they become (parts of a task, as above, sort the tasks by a length that nobody knew):",
        "",
        *table_lines(("family", *map(str, range(1, 11))), rows),
        "",
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


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _plot_errors(result: Result, path: Path) -> None:
    """Error by how much of the task was seen: in log (left) and over the whole work (right)."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, name, title in zip(
        axes,
        ("log_error", "relative_error"),
        ("log error of what still comes", "error over the work of the whole task"),
        strict=True,
    ):
        for family, methods in sorted(result["families"].items()):
            curve = methods.get(OURS, {}).get(f"{name}_by_progress", {})
            if len(curve) > 1:
                at = [i for i, point in enumerate(_POINTS) if point in curve]
                axis.plot(at, [curve[_POINTS[i]] for i in at], marker="o", label=family)
        axis.set_xticks(range(len(_POINTS)), _LABELS)
        axis.set_xlabel("stages seen")
        axis.set_title(title)
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
