"""The pictures of an evaluation report."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

Document = dict[str, Any]

# Colours that stay apart for readers who do not see all of them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000", "#b0a030")
_LEVELS = ("p50", "p90", "p95")


def save_plots(document: Document, folder: Path) -> list[str]:
    """Write every picture the document has figures for; returns the file names in order."""
    drawn = []
    for name, draw, needed in (
        ("reliability.png", _reliability, "reliability"),
        ("crps_by_split.png", _crps_by_split, "online"),
        ("pinball_by_family.png", _pinball_by_family, "by_family"),
        ("refinement.png", _refinement, "refinement"),
        ("noise_floor.png", _noise_floor, "noise_floor"),
        ("unseen_models.png", _unseen_models, "unseen_models"),
    ):
        if not document.get(needed):
            continue
        figure = draw(document)
        try:
            figure.savefig(folder / name, dpi=120)
        finally:
            plt.close(figure)
        drawn.append(name)
    return drawn


def _reliability(document: Document) -> Any:
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    for colour, (name, curve) in zip(_COLOURS, document["reliability"].items(), strict=False):
        axes.plot(curve["declared"], curve["realised"], marker="o", markersize=3, color=colour, label=name)
    axes.set_xlabel("declared level")
    axes.set_ylabel("share of outcomes below the declared bound")
    axes.set_title("Reliability: unseen prompts")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _crps_by_split(document: Document) -> Any:
    splits = document["online"]
    learners = list(next(iter(splits.values()))["learners"])
    figure, axes = plt.subplots(figsize=(11, 0.5 + 0.45 * len(splits) + 1.5), layout="constrained")
    for i, (colour, name) in enumerate(zip(_COLOURS, learners, strict=False)):
        values = [split["learners"].get(name, {}).get("crps", np.nan) for split in splits.values()]
        axes.scatter(
            values, np.arange(len(splits)) + (i - len(learners) / 2) * 0.06, color=colour, label=name, s=22
        )
    axes.set_yticks(np.arange(len(splits)), list(splits))
    axes.invert_yaxis()
    axes.set_xlabel("CRPS of log length, learning online (less is better)")
    axes.legend(fontsize=8, ncols=3)
    axes.grid(alpha=0.3, axis="x")
    return figure


def _pinball_by_family(document: Document) -> Any:
    families = document["by_family"]
    learners = list(next(iter(families.values()))["learners"])
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    width = 0.8 / len(learners)
    at = np.arange(len(families))
    for i, (colour, name) in enumerate(zip(_COLOURS, learners, strict=False)):
        values = [family["learners"].get(name, {}).get("pinball", np.nan) for family in families.values()]
        axes.bar(at + (i - (len(learners) - 1) / 2) * width, values, width, color=colour, label=name)
    axes.set_xticks(at, [f"{name}\n({family['scored']})" for name, family in families.items()])
    axes.set_ylabel("pinball loss of log length, mean over levels")
    axes.set_title("Unseen prompts, by family of tasks (outcomes scored)")
    axes.legend(fontsize=8, ncols=3)
    return figure


def _refinement(document: Document) -> Any:
    figure, (covered, ratio) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for colour, (mode, curve) in zip(_COLOURS, document["refinement"]["curves"].items(), strict=False):
        out = [100 * point["share_out"] for point in curve]
        covered.plot(
            out, [100 * point["coverage"]["p90"] for point in curve], marker="o", color=colour, label=mode
        )
        ratio.plot(out, [point["p90_over_true"] for point in curve], marker="o", color=colour, label=mode)
    covered.axhline(90, color="0.6", linestyle="--", linewidth=1)
    covered.set_ylabel("coverage of the P90 bound, %")
    ratio.axhline(1, color="0.6", linestyle="--", linewidth=1)
    ratio.set_ylabel("P90 bound / true length, median")
    for axes in (covered, ratio):
        axes.set_xlabel("tokens that are out, % of the answer")
        axes.set_xticks([0, 25, 50, 75])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _noise_floor(document: Document) -> Any:
    rows = document["noise_floor"]["sources"]
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    at = np.arange(len(rows))
    for i, (name, colour) in enumerate(
        (("floor", "0.7"), ("error", _COLOURS[0]), ("global_error", _COLOURS[1]))
    ):
        axes.bar(
            at + (i - 1) * 0.27,
            [row[name] for row in rows.values()],
            0.27,
            color=colour,
            label={
                "floor": "noise floor (same prompt again)",
                "error": "predictor",
                "global_error": "one median for all",
            }[name],
        )
    axes.set_xticks(at, list(rows), rotation=20, ha="right")
    axes.set_ylabel("mean absolute error of log length")
    axes.legend()
    return figure


def _unseen_models(document: Document) -> Any:
    families = document["unseen_models"]["families"]
    figure, panels = plt.subplots(
        1, 2, figsize=(13, 0.4 * len(families) + 2), sharey=True, layout="constrained"
    )
    for axes, after, limit in zip(panels, ("after_20", "after_200"), (5, 2), strict=True):
        for i, (level, colour) in enumerate(zip(_LEVELS, _COLOURS, strict=False)):
            for mode, marker in (("frozen", "s"), ("learning", "o")):
                values = [
                    100 * (_mean_coverage(family, after, mode, level) - int(level[1:]) / 100)
                    for family in families.values()
                ]
                axes.scatter(
                    values,
                    np.arange(len(families)) + (i - 1) * 0.2,
                    marker=marker,
                    color=colour,
                    s=24,
                    facecolors="none" if mode == "frozen" else colour,
                    label=f"{level}, {mode}",
                )
        axes.axvspan(-limit, limit, color="0.92", zorder=0)
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_title(f"after {after.removeprefix('after_')} outcomes")
        axes.set_xlabel("coverage minus declared level, points")
    panels[0].set_yticks(np.arange(len(families)), list(families))
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=8)
    return figure


def _mean_coverage(family: Document, after: str, mode: str, level: str) -> float:
    """A family's coverage; NaN when it has too few outcomes to have one."""
    return float(family.get(after, {}).get(mode, {}).get(level, {}).get("mean", np.nan))
