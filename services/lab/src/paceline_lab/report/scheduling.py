"""`docs/scheduling.md`: what the simulator says of the batch policies, beside the published figures."""

from collections.abc import Sequence
from pathlib import Path

from paceline_lab.report.columns import (
    LABEL,
    OF_BOUND,
    POLICY,
    PUBLISHED,
    TTFT,
    WASTED,
    attained,
    plain,
    ratio,
    with_interval,
)
from paceline_lab.report.experiment import BASE, ENGINE, Experiment
from paceline_lab.report.experiments import experiments
from paceline_lab.report.running import Scale
from paceline_lab.report.tables import Report, Results, provenance, write_tables

REPORT = Report(
    name="scheduling",
    experiments=experiments(),
    columns=(
        LABEL,
        POLICY,
        with_interval("requests/s in time", "request_goodput", 3),
        with_interval("tokens/s 1:1", "token_goodput_1_1", 0),
        plain("tokens/s 1:8", "token_goodput_1_8"),
        ratio("x requests", "request_goodput"),
        ratio("x tokens 1:8", "token_goodput_1_8"),
        OF_BOUND,
        *(attained(kind, kind) for kind in ("latency", "deadline", "task")),
        TTFT,
        plain("raw tokens/s", "output_tokens_per_s"),
        WASTED,
        PUBLISHED,
    ),
    base=BASE,
    ours="pace",
    no_rivals=frozenset({"oracle"}),
)


def introduction(scale: Scale, chosen: Sequence[Experiment] = ()) -> str:
    """How the figures were made, and by which command."""
    return f"""# Scheduling: how the batch policies compare

{provenance(REPORT, scale, chosen)}

**All figures below are simulated**, but for sections that say measured. The simulator runs the product's own
policies, live table, planning and tracker on engines made of numbers ([simulation.md](simulation.md) says how
far it is off).

One A100-80 with an 8B model (`{ENGINE}`), workload `jitserve-mix` (published lengths, 1:1:1 by application
request), unless a table says otherwise. Policies see length estimates of a calibrated predictor that explains
35 % of the variance within an application, and the engine model that is fitted while it runs. Load 1x is the
knee: the greatest rate at which `sarathi` keeps 90 % of its attainment at light load. A window of
{scale.window_budgets:g} longest budgets is scored after a warm-up; what has not ended a longest budget later is
a miss. Of bound: share of a fluid upper bound on requests in time ([simulation.md](simulation.md)), which no
schedule can reach whole. x: ratio to `{BASE}`, or to the first policy of the table. Attainment by class in percent;
wasted: share of output tokens that came to nothing."""


def write_report(path: Path, chosen: Sequence[Experiment], results: Results, intro: str, outro: str) -> None:
    """Write the Markdown, and its pictures beside it."""
    write_tables(REPORT, path, chosen, results, intro, outro)
