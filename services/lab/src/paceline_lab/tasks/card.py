"""The card of a task model file: what it was trained on, under which licences, what it was measured to do."""

import hashlib
from typing import Any, Final

from paceline_lab.tasks.report import OURS, table_lines
from paceline_predictor.tasks.matcher import TaskMatcher

_METHODS: Final = (OURS, "app-mean", "jitserve")
_FIGURES: Final = (
    ("log_error", "log error of the work to come"),
    ("relative_error", "error of it over the whole work"),
    ("share_error", "error of the current stage's share"),
    ("coverage_p50", "coverage of the P50"),
    ("coverage_p90", "coverage of the P90"),
    ("last_stage_brier", "Brier score of a stage being the last"),
    ("shape_match_repeated_families", "shape match, families with repeated shapes"),
    ("shape_match_occurred_families", "shape match, families whose shapes occurred before"),
    ("shape_match_all_families", "shape match, all families"),
    ("shape_knowable_all_families", "the same by the commonest completion in history"),
)


def card_of(content: bytes, result: dict[str, Any]) -> str:
    """Markdown for a model file and an evaluation. Raises ModelFileError for another kind of file."""
    matcher = TaskMatcher(content)
    data = matcher.card.get("data", {})
    rows = [
        (name, row["licence"], str(row["tasks"]), ", ".join(row["families"]))
        for name, row in sorted(data.items())
    ]
    overall = result["overall"]
    figures = [
        (label, *(f"{x:.3f}" if (x := overall.get(m, {}).get(key)) is not None else "" for m in _METHODS))
        for key, label in _FIGURES
    ]
    lines = [
        "# Task model",
        "",
        f"Version {matcher.version}, {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}.",
        "Licence Apache-2.0. It forecasts what a task of several calls still needs from the calls so far; it holds no",
        f"text. Made by `{matcher.card.get('command', '')}`.",
        "",
        "## Data",
        "",
        *table_lines(("set", "licence", "tasks", "families"), rows),
        "",
        "## Measured",
        "",
        f"Parameters learned anew without the held-out tasks, {result['scored_folds']} of {result['folds']} folds;",
        "means over families of equal weight, sets among them that are only measured with. What the words mean stands",
        "in the evaluation's report (`paceline eval tasks --data DIR --out DIR`), with every family.",
        "",
        *table_lines(("figure", *_METHODS), figures),
        "",
        "## Limits",
        "",
        "Before an application has shown about ten tasks, forecasts rest on the few kinds of tasks above: rough.",
        "Which tool an agent calls next, and when it stops, is often not foretellable from calls without text.",
    ]
    return "\n".join(lines) + "\n"
