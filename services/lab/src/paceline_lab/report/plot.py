"""Curves of an experiment: goodput of each policy over its variants."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from paceline_lab.paired import interval
from paceline_lab.report.columns import values
from paceline_lab.report.experiment import Experiment
from paceline_lab.report.running import Row
from paceline_lab.report.tables import of_policy

matplotlib.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

_COLOURS = (
    "#999999", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#000000", "#cc79a7", "#56b4e9", "#8c564b", "#bcbd22",
    "#7f3c8d", "#17becf", "#f97b72", "#3969ac", "#80ba5a",
)  # fmt: skip
_PANELS = (("request_goodput", "requests/s in time"), ("token_goodput_1_1", "tokens/s in time (1:1)"))


def save_curves(experiment: Experiment, results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write the picture; its bytes depend on the figures alone."""
    labels = [variant.label for variant in experiment.variants]
    with matplotlib.rc_context({"svg.hashsalt": experiment.name, "svg.fonttype": "none"}):
        figure, panels = plt.subplots(1, len(_PANELS), figsize=(11, 4), layout="constrained")
        try:
            for axes, (metric, title) in zip(panels, _PANELS, strict=True):
                for number, policy in enumerate(experiment.policies):
                    rows = {
                        label: of_policy(results.get(label, ()), experiment.compares, policy)
                        for label in labels
                    }
                    points = {
                        label: interval(values(found, metric)) for label, found in rows.items() if found
                    }
                    axes.errorbar(
                        [labels.index(label) for label in points],
                        [point.mean for point in points.values()],
                        yerr=np.nan_to_num([point.half for point in points.values()]),
                        label=policy,
                        color=_COLOURS[number % len(_COLOURS)],
                        marker="o",
                        markersize=4,
                        capsize=2,
                    )
                axes.set_xticks(range(len(labels)), labels)
                axes.set_title(f"{title}, simulated")
                axes.set_ylim(bottom=0)
                axes.grid(alpha=0.3)
            panels[0].legend(frameon=False, fontsize="small")
            figure.savefig(path, metadata={"Date": None})
        finally:
            plt.close(figure)
