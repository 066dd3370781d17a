"""Curves of an experiment: goodput of each policy over its variants."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from paceline_lab.paired import interval
from paceline_lab.report.experiments import Experiment
from paceline_lab.report.running import Row

matplotlib.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

_COLOURS = ("#999999", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#000000", "#cc79a7", "#56b4e9")
_PANELS = (("request_goodput", "requests/s in time"), ("token_goodput_1_1", "tokens/s in time (1:1)"))


def save_curves(experiment: Experiment, results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write the picture; its bytes depend on the figures alone."""
    labels = [variant.label for variant in experiment.variants]
    with matplotlib.rc_context({"svg.hashsalt": experiment.name, "svg.fonttype": "none"}):
        figure, panels = plt.subplots(1, len(_PANELS), figsize=(11, 4), layout="constrained")
        try:
            for axes, (metric, title) in zip(panels, _PANELS, strict=True):
                for number, policy in enumerate(experiment.policies):
                    points = [
                        interval(
                            [float(row[metric] or 0.0) for row in results[label] if row["policy"] == policy]
                        )
                        for label in labels
                    ]
                    axes.errorbar(
                        labels,
                        [point.mean for point in points],
                        yerr=np.nan_to_num([point.half for point in points]),
                        label=policy,
                        color=_COLOURS[number % len(_COLOURS)],
                        marker="o",
                        markersize=4,
                        capsize=2,
                    )
                axes.set_title(f"{title}, simulated")
                axes.set_ylim(bottom=0)
                axes.grid(alpha=0.3)
            panels[0].legend(frameon=False)
            figure.savefig(path, metadata={"Date": None})
        finally:
            plt.close(figure)
