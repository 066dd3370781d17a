"""A run as a picture: every call as a line of tokens, in time or late; attainment and load over time below."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from paceline_core.slo import SloClass
from paceline_lab.live.report import LiveReport
from paceline_lab.live.score import JobRecord, score_job

matplotlib.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

# Colours that stay apart for readers who do not see all of them.
COLOURS = {
    SloClass.LATENCY: "#0072b2",
    SloClass.DEADLINE: "#009e73",
    SloClass.TASK: "#cc79a7",
    SloClass.BEST_EFFORT: "#7f7f7f",
}
_MARKERS = {SloClass.LATENCY: "o", SloClass.DEADLINE: "s", SloClass.TASK: "^", SloClass.BEST_EFFORT: "D"}
_LATE = "#d55e00"
_JOBS_PER_BUCKET = 10  # fewer, and a share says little
_MOST_BUCKETS = 12


def save_plot(report: LiveReport, path: Path) -> None:
    """Write the picture; the suffix chooses the format (png, svg, pdf)."""
    figure, (timelines, shares) = plt.subplots(
        2, 1, figsize=(12, 9), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    try:
        _timelines(timelines, report)
        _attainment(shares, report)
        title = report.policy_label or "paceline live"
        figure.suptitle(
            f"{title}: {report.workload.rate_per_s:.2f} jobs/s, {report.workload.arrivals.value} arrivals, "
            f"seed {report.workload.seed}"
        )
        figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)


def _timelines(axes: Any, report: LiveReport) -> None:
    for row, job in enumerate(report.jobs):
        colour = COLOURS[job.slo.slo_class]
        ends = [float(call.token_ms[-1]) for call in job.calls if call.output_tokens]
        if ends:
            end_s = job.arrival_s + max(ends) / 1000
            axes.plot([job.arrival_s, end_s], [row, row], color="0.85", linewidth=0.6, zorder=1)
        axes.plot([job.arrival_s], [row], marker="|", markersize=5, color=colour, zorder=2)
        in_time, late = _split(job)
        axes.scatter(
            job.arrival_s + in_time / 1000,
            np.full(len(in_time), row),
            s=3,
            color=colour,
            linewidths=0,
            zorder=3,
        )
        axes.scatter(
            job.arrival_s + late / 1000, np.full(len(late), row), s=3, color=_LATE, linewidths=0, zorder=3
        )
    for slo_class in sorted({job.slo.slo_class for job in report.jobs}):
        axes.scatter(
            [],
            [],
            s=20,
            color=COLOURS[slo_class],
            label=f"{slo_class.name.lower().replace('_', ' ')}: in time",
        )
    axes.scatter([], [], s=20, color=_LATE, label="token did not count")
    axes.axvspan(0, report.warmup_s, color="0.93", zorder=0, label="warm-up, not scored")
    axes.set_ylabel("job, by arrival (tick); each dot is a token")
    axes.set_ylim(len(report.jobs) + 0.5, -1.5)
    axes.legend(loc="lower left", fontsize=8, framealpha=0.9)


def _split(job: JobRecord) -> tuple[np.ndarray, np.ndarray]:
    """Token times in time and not, milliseconds since the job's arrival."""
    times = np.concatenate([call.token_ms for call in job.calls]) if job.calls else np.empty(0)
    if job.slo.slo_class is SloClass.BEST_EFFORT:
        return times, np.empty(0)
    if job.slo.slo_class is not SloClass.LATENCY:
        return (times, np.empty(0)) if score_job(job).attained else (np.empty(0), times)
    masks = [
        call.token_ms <= job.slo.ttft_ms + np.arange(call.output_tokens) * job.slo.tbt_ms
        for call in job.calls
    ]
    mask = np.concatenate(masks) if masks else np.empty(0, dtype=bool)
    return times[mask], times[~mask]


def _attainment(axes: Any, report: LiveReport) -> None:
    buckets = max(2, min(_MOST_BUCKETS, len(report.jobs) // _JOBS_PER_BUCKET))
    edges = np.linspace(0, report.workload.duration_s, buckets + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    for slo_class in sorted({job.slo.slo_class for job in report.jobs}):
        shares = []
        for low, high in itertools.pairwise(edges):
            mine = [
                job for job in report.jobs if job.slo.slo_class is slo_class and low <= job.arrival_s < high
            ]
            shares.append(100 * np.mean([score_job(job).attained for job in mine]) if mine else np.nan)
        axes.plot(
            middles,
            shares,
            marker=_MARKERS[slo_class],
            color=COLOURS[slo_class],
            label=slo_class.name.lower().replace("_", " "),
        )
    axes.axvspan(0, report.warmup_s, color="0.93", zorder=0)
    axes.set_ylim(-5, 105)
    axes.set_ylabel("attainment, %\n(by arrival)")
    axes.set_xlabel("time since the start, seconds")
    axes.grid(alpha=0.3)
