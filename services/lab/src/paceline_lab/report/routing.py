"""`docs/routing.md`: what the simulator says of the placement policies, beside the published figures."""

from collections.abc import Sequence
from pathlib import Path

from paceline_lab.report.calibration import calibration_section
from paceline_lab.report.columns import (
    LABEL,
    MOVED,
    OF_BOUND,
    POLICY,
    PUBLISHED,
    WASTED,
    attained,
    mean,
    plain,
    ratio,
    with_interval,
)
from paceline_lab.report.experiment import BASE, Experiment
from paceline_lab.report.routing_experiments import BLIND, FLEET, ORACLES, OURS, experiments
from paceline_lab.report.running import Scale
from paceline_lab.report.tables import (
    Report,
    Results,
    compared,
    of_policy,
    percent,
    provenance,
    write_tables,
)

REPORT = Report(
    name="routing",
    experiments=experiments(),
    columns=(
        LABEL,
        POLICY,
        with_interval("requests/s in time", "request_goodput", 3),
        with_interval("tokens/s 1:1", "token_goodput_1_1", 0),
        attained("attained"),
        ratio("x requests", "request_goodput"),
        ratio("x tokens 1:1", "token_goodput_1_1"),
        OF_BOUND,
        plain("raw tokens/s", "output_tokens_per_s"),
        WASTED,
        MOVED,
        PUBLISHED,
    ),
    base="least-request",
    ours=OURS,
    no_rivals=frozenset(ORACLES),
    headlines=("goodserve", "least-predicted"),
)


def introduction(scale: Scale, chosen: Sequence[Experiment] = ()) -> str:
    """How the figures were made, and by which command."""
    return f"""# Routing: how the placement policies compare

{provenance(REPORT, scale, chosen)}

**All figures below are simulated**, but for sections that say measured. The simulator feeds the router's own fleet
table, policies, prices and rules of moves with what engines would report every 200 ms; engines are made of numbers
([simulation.md](simulation.md) says how far it is off).

Four unequal engines ({", ".join(f"`{name}`" for name in FLEET)}: H800 and A800 taken for H100 and A100 on one
device) with an 8B model, 32 slots each unless a table says otherwise, under `{BASE}`. Workload `goodserve-mix`: SQL and
SWE agents, code and maths with reasoning tails, each call with a target of 1.2 to 5 times its idle time on the best or
on the median engine. Policies see length estimates of a calibrated predictor that explains 35 % of the variance within
an application, and engine models that are fitted while they run. No prompts share prefixes here, so that `preble` is
left with its load term; joining the shortest queue is `least-request`. Moves are on for policies that ask for any (at
most two of a call, two under way from or to an engine, asked for every 250 ms): token ids travel, the old engine goes
on until the new one is ready.

A window of {scale.window_budgets:g} times the longest budget is scored after a warm-up; what has not ended a longest
budget later is a miss. Of bound: share of a fluid upper bound on requests in time ([simulation.md](simulation.md)),
which no schedule can reach whole. x: ratio to `{REPORT.base}`, or to the first policy of the table. Wasted: share of
output tokens that came to nothing. Gains and losses are paired by seed, with 95 % intervals."""


def write_report(path: Path, chosen: Sequence[Experiment], results: Results, intro: str, outro: str) -> None:
    """Write the Markdown, and its pictures beside it."""
    sections = [blind_section(chosen, results), calibration_section(OURS, chosen, results), outro]
    text = "\n\n".join(section for section in sections if section.strip())
    write_tables(REPORT, path, chosen, results, intro, text)


def blind_section(chosen: Sequence[Experiment], results: Results) -> str:
    """Markdown: gain of GoodServe over the best of the deadline-blind rules, beside the published one."""
    lines = []
    for experiment in chosen:
        for variant in experiment.variants if experiment.name in ("motivation", "load") else ():
            rows = results.get(experiment.name, {}).get(variant.label, ())
            found = {
                policy: of_policy(rows, experiment.compares, policy) for policy in (*BLIND, "goodserve", OURS)
            }
            name = "request_goodput"
            blind = [policy for policy in BLIND if found[policy]]
            if not (blind and found["goodserve"] and found[OURS]):
                continue
            best = max(blind, key=lambda policy: mean(found[policy], name))
            gains = [compared(found[policy], found[best], name) for policy in ("goodserve", OURS)]
            shown = " | ".join("-" if gain is None else percent(gain, found[best], name) for gain in gains)
            lines.append(f"| {experiment.title}, {variant.label} | {best} (of {len(blind)}) | {shown} |")
    if not lines:
        return ""
    head = [
        "## Over the best deadline-blind rule (simulated)",
        "",
        "Requests in time, paired by seed. Published for GoodServe: up to +27.4 %.",
        "",
        f"| | best blind rule | `goodserve` | `{OURS}` |",
        "|---|---|---|---|",
    ]
    return "\n".join(head + lines)
