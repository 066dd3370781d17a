"""An evaluation as Markdown: the tables of its JSON document, in reading order."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def markdown(document: Document, plots: Sequence[str] = ()) -> str:
    """The report of an evaluation; `plots` are file names beside it."""
    parts = [_head(document), _targets(document)]
    for key, title, note in (
        ("static", "Frozen", "The models as trained, before any outcome of the test set is learned."),
        (
            "online",
            "Learning online",
            "Every answer is given before its outcome is learned; this is what serves. Rivals learn online too.",
        ),
    ):
        if document.get(key):
            parts.append(f"## {title}\n\n{note}\n\n" + _splits(document[key], document["candidate"]))
    for key, section in (
        ("unseen_models", _unseen),
        ("mix_change", _mix_change),
        ("refinement", _refinement),
        ("noise_floor", _noise_floor),
        ("by_family", _by_family),
    ):
        if document.get(key):
            parts.append(section(document))
    if plots:
        parts.append(
            "## Plots\n\n" + "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in plots)
        )
    return "\n\n".join(parts) + "\n"


def write_report(document: Document, folder: Path) -> None:
    """Write evaluation.json, report.md and the plots into a folder."""
    from paceline_lab.lengths.plots import save_plots  # matplotlib takes a while to load

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "report.md").write_text(markdown(document, save_plots(document, folder)))


def targets_text(document: Document) -> str:
    """The targets as lines of plain text."""
    return "\n".join(
        f"{'met   ' if row['met'] else 'MISSED'}  {row['name']}: {row['value']}  (line: {row['limit']})"
        for row in document["targets"]
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def _head(document: Document) -> str:
    machine, corpus = document["machine"], document["corpus"]
    lines = [
        "# Length prediction: evaluation",
        "",
        f"Candidate: **{document['candidate']}**; seed {document['seed']}; {document['seconds']:.0f} s on "
        f"{machine['cores']} cores ({machine['cpu']}){'; quick run' if document['quick'] else ''}; {machine['at']}.",
        "",
        "CRPS and pinball loss are of the natural log of the length, width is ln(P90 / P10), intervals are 95 % paired "
        "bootstrap over prompts. Cut answers count as censored.",
        "",
        table(
            ("set", "examples", "prompts", "models", "cut", "trains what ships"),
            [
                (
                    name,
                    row["examples"],
                    row["prompts"],
                    row["models"],
                    row["censored"],
                    "yes" if row["permissive"] else "no",
                )
                for name, row in corpus["sources"].items()
            ],
        ),
    ]
    if corpus["missing"]:
        lines += ["", "Missing: " + "; ".join(corpus["missing"]) + "."]
    return "\n".join(lines)


def _targets(document: Document) -> str:
    rows = [
        (row["name"], row["limit"], row["value"], "met" if row["met"] else "**missed**")
        for row in document["targets"]
    ]
    return "## Against the targets\n\n" + table(("what", "line", "measured", ""), rows)


def _splits(splits: Document, candidate: str) -> str:
    parts = []
    for name, split in splits.items():
        rows = []
        for learner, scores in split["learners"].items():
            gain = split["gain"].get(learner)
            rows.append(
                (
                    f"**{learner}**" if learner == candidate else learner,
                    number(scores["crps"]),
                    number(scores["pinball"]),
                    *(percent(scores["coverage"][level]) for level in ("p50", "p90", "p95")),
                    number(scores["log_width_80"], 2),
                    percent(scores["within_2x"], 0),
                    ""
                    if gain is None
                    else f"{percent(gain['value'])} ({percent(gain['low'])} to {percent(gain['high'])})",
                )
            )
        parts.append(
            f"### {name} ({split['scored']} outcomes, {split['prompts']} prompts)\n\n"
            + table(
                (
                    "learner",
                    "CRPS",
                    "pinball",
                    "P50",
                    "P90",
                    "P95",
                    "width",
                    "within 2x",
                    "gain of the candidate",
                ),
                rows,
            )
        )
    return "\n\n".join(parts)


def _unseen(document: Document) -> str:
    found = document["unseen_models"]
    rows = []
    for name, family in found["families"].items():
        for after in ("after_20", "after_200"):
            if (point := family.get(after)) is None:
                continue
            rows.append(
                (
                    name if after == "after_20" else "",
                    after.removeprefix("after_"),
                    point["scored"],
                    *(
                        percent(point[mode].get(level, {}).get("mean"))
                        for mode in ("frozen", "learning")
                        for level in ("p50", "p90", "p95")
                    ),
                    number(point["log_width_80"], 2),
                )
            )
    return f"## Models never seen\n\nMean over {found['orders']} random orders for each family.\n\n" + table(
        ("family", "after", "scored", "P50 frozen", "P90", "P95", "P50 learning", "P90", "P95", "width"), rows
    )


def _mix_change(document: Document) -> str:
    rows = [
        (
            name,
            change["runs"],
            change["windows"],
            *(percent(change[level]["good_windows"]) for level in ("p50", "p90", "p95")),
            f"{percent(change['p90']['lowest'])} to {percent(change['p90']['highest'])}",
            number(change["log_width_80"], 2),
        )
        for name, change in document["mix_change"].items()
        if change["windows"]
    ]
    return (
        "## A change of the workload in the middle of a run\n\nWindows of 500 outcomes that stay within 2 points + 2 "
        "standard errors of the declared level, from 100 outcomes after the change.\n\n"
        + table(
            ("change", "runs", "windows", "P50 good", "P90 good", "P95 good", "P90 in windows", "width"), rows
        )
    )


def _refinement(document: Document) -> str:
    found = document["refinement"]
    rows = [
        (
            mode,
            percent(point["share_out"], 0),
            *(percent(point["coverage"][level]) for level in ("p50", "p90", "p95")),
            number(point["p90_over_true"], 2),
            number(point["p90_over_true_mean"], 2),
            number(point["log_width_80"], 2),
        )
        for mode, curve in found["curves"].items()
        for point in curve
    ]
    return (
        f"## While tokens come out\n\n{found['outcomes']} answers of unseen prompts with at least "
        f"{found['min_tokens']} tokens.\n\n"
        + table(("estimate", "out", "P50", "P90", "P95", "P90 / true, median", "mean", "width"), rows)
    )


def _noise_floor(document: Document) -> str:
    found = document["noise_floor"]
    rows = [
        (name, number(row["floor"]), number(row["error"]), number(row["global_error"]), row["scored"])
        for name, row in found["sources"].items()
    ]
    return f"## Error against the noise floor\n\n{found['note']}\n\n" + table(
        ("set", "floor", "predictor", "one median for all", "scored"), rows
    )


def _by_family(document: Document) -> str:
    families = document["by_family"]
    learners = list(next(iter(families.values()))["learners"])
    rows = [
        (name, family["scored"], *(number(family["learners"][learner]["pinball"]) for learner in learners))
        for name, family in families.items()
    ]
    return "## Pinball loss by family of tasks\n\nUnseen prompts.\n\n" + table(
        ("family", "scored", *learners), rows
    )
