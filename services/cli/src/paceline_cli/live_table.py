"""The result of a live run for people."""

import math
from typing import TYPE_CHECKING

from rich.table import Table

from paceline_cli.output import make_console

if TYPE_CHECKING:
    from paceline_lab.live.report import LiveReport
    from paceline_lab.live.score import ClassScore, Percentiles

_LAG_WARNING_MS = 50.0


def print_report(report: "LiveReport") -> None:
    """The goodput table, and what one has to know to read it."""
    from paceline_lab.live.report import totals

    console = make_console()
    workload, objectives = report.workload, report.objectives
    engines = ", ".join(f"{engine['engine_id']} ({engine['model']})" for engine in report.engines)
    simulated = "SIMULATED engines. " if any(e["backend"] == "simulated" for e in report.engines) else ""
    cv = f" (CV {workload.cv:g})" if workload.cv != 1.0 else ""
    console.print(
        f"{simulated}{report.policy_label + ': ' if report.policy_label else ''}"
        f"{workload.rate_per_s:g} jobs/s, {workload.arrivals.value} arrivals{cv}, seed {workload.seed}, "
        f"over {report.transport}; engines {engines}\n"
        f"rate: {report.rate_source}; scored: arrivals of {report.window_s:.0f} s after {report.warmup_s:.0f} s of "
        f"warm-up; what is unfinished {report.grace_s:.0f} s after the end is a miss\n"
        f"budgets: latency TTFT {objectives.ttft_ms:.0f} ms, TBT {objectives.tbt_ms:.1f} ms; deadline "
        f"{objectives.deadline_ms / 1000:.1f} s; task {objectives.task_stage_ms / 1000:.1f} s a stage\n"
    )
    scores = report.scores()
    console.print(_goodput(scores))
    console.print("")
    console.print(_times(scores))
    total = totals(scores)
    if total["jobs"]:
        console.print(
            f"\nall: {total['attained']} of {total['jobs']} attained ({total['attainment']:.1%}), goodput "
            f"{total['token_goodput_1_1']:.1f} tokens/s (prompt and output 1:1), "
            f"{total['token_goodput_1_8']:.1f} (1:8), {total['request_goodput']:.2f} jobs/s; "
            f"{total['wasted_tokens']} of {total['output_tokens']} output tokens did not count"
        )
    for what, count in report.errors.items():
        console.print(f"failed calls: {count} x {what}", style="red")
    if report.lag_p99_ms > _LAG_WARNING_MS:
        console.print(
            f"warning: the generator itself was late by {report.lag_p99_ms:.0f} ms (P99); its machine is too busy",
            style="yellow",
        )


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=True)
    return table


def _goodput(scores: "list[ClassScore]") -> Table:
    table = _table(
        ("class", "jobs", "attained", "tokens/s 1:1", "tokens/s 1:8", "jobs/s", "unfinished", "wasted tokens")
    )
    for score in scores:
        table.add_row(
            _name(score), str(score.jobs), "-" if math.isnan(score.attainment) else f"{score.attainment:.0%}",
            f"{score.token_goodput_1_1:.1f}", f"{score.token_goodput_1_8:.1f}", f"{score.request_goodput:.2f}",
            str(score.unfinished), str(score.wasted_tokens),
        )  # fmt: skip
    return table


def _times(scores: "list[ClassScore]") -> Table:
    table = _table(("class", "TTFT s P50/P95/P99", "TBT ms P50/P95/P99", "TTLT s P50/P95/P99"))
    for score in scores:
        table.add_row(
            _name(score),
            _three(score.ttft_ms, 1000, 2),
            _three(score.tbt_ms, 1, 0),
            _three(score.ttlt_ms, 1000, 1),
        )
    return table


def _name(score: "ClassScore") -> str:
    return score.slo_class.name.lower().replace("_", " ")


def _three(values: "Percentiles", divisor: float, digits: int) -> str:
    return " / ".join(_number(value / divisor, digits) for value in (values.p50, values.p95, values.p99))


def _number(value: float, digits: int) -> str:
    """A number; `never` where that share of the jobs never got there."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:.{digits}f}"
