"""Does P(meet) = 0.8 come true 80 % of the time? From what runs counted by tenths of P(meet)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from paceline_lab.report.experiment import Experiment
from paceline_lab.report.running import Row
from paceline_lab.report.tables import Results

GOAL: Final = 0.05


def calibration_section(policy: str, chosen: Sequence[Experiment], results: Results) -> str:
    """Markdown: the expected calibration error of a policy by table and variant, and what came true by tenths over
    all of them."""
    lines: list[str] = []
    every: dict[str, Row] = {}  # runs are shared by tables: each counts once
    for experiment in chosen:
        found = [
            (variant.label, bins)
            for variant in experiment.variants
            if (bins := summed(_of(results, experiment, variant.label, policy))) is not None
        ]
        if found:
            for variant in experiment.variants:
                rows = _of(results, experiment, variant.label, policy)
                every |= {json.dumps([row["seed"], row["calls"], row["p_meet_bins"]]): row for row in rows}
            errors = ", ".join(f"{label} {_error(bins)}" for label, bins in found)
            lines.append(f"| {experiment.title} | {errors} |")
    total = summed(every.values())
    if total is None:
        return ""
    return "\n".join(
        [
            "## Calibration of P(meet) (simulated)",
            "",
            f"`{policy}` says at placement how likely a call is to be in time. Expected calibration error: mean "
            "distance between what it said and what came true, by tenths of it, weighed by calls (goal: at most "
            f"{GOAL}).",
            "",
            "| table | error by variant |",
            "|---|---|",
            *lines,
            f"| **all** | **{calibration_error(total):.3f}** |",
            "",
            "| P(meet), mean of its tenth | calls | in time |",
            "|---|---|---|",
            *(
                f"| {said / calls:.2f} | {calls:.0f} | {came / calls:.2f} |"
                for calls, said, came in total
                if calls
            ),
        ]
    )


def summed(rows: Iterable[Row]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]] | None:
    """[tenths, (calls, sum of P(meet), in time)] over runs; None where nothing was said."""
    bins = [np.asarray(row["p_meet_bins"], dtype=np.float64) for row in rows if row.get("p_meet_bins")]
    total = np.sum(bins, axis=0) if bins else np.zeros((0, 3))
    return total if total.sum() else None


def calibration_error(bins: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    """Expected calibration error of [tenths, (calls, sum of P(meet), in time)]."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1.0))


def _error(bins: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    error = calibration_error(bins)
    return f"{error:.3f}" + ("" if error <= GOAL else " (missed)")


def _of(results: Results, experiment: Experiment, label: str, policy: str) -> list[Row]:
    found: Mapping[str, Sequence[Row]] = results.get(experiment.name, {})
    return [row for row in found.get(label, ()) if row[experiment.compares] == policy]
