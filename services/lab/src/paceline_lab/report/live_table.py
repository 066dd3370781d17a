"""The live table of the scheduling report, from what `paceline compare` measured."""

import json
from pathlib import Path
from typing import Any


def live_section(path: Path) -> str:
    """Markdown of one compare.json. Raises OSError, ValueError and KeyError on what is none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("kind") != "paceline compare":
        raise ValueError(f"{path} was not written by `paceline compare --out`")
    engines = ", ".join(f"{engine['model']} ({engine['backend']})" for engine in found["engines"])
    first = found["policies"][0]
    lines = [
        f"## Real engines, {found['load']:.2g}x of measured capacity (measured)",
        "",
        f"{len(found['engines'])} engines: {engines}. {found['rate_per_s']:g} jobs/s over {found['duration_s']:g} s "
        f"a turn ({found['scored_over_longest_slo']:.1f} times the longest budget is scored), "
        f"{len(found['seeds'])} seeds, policies interleaved. Means with 95 % intervals; differences paired by seed.",
        "",
        f"| policy | requests/s in time | tokens/s 1:1 | attained | raw tokens/s | x {first} | against `{first}` |",
        "|---|---|---|---|---|---|---|",
    ]
    by_policy = {row["policy"]: row for row in found["rows"]}
    pairs = {(p["policy"], p["against"], p["metric"]): p for p in found["paired"]}
    base = by_policy[first]["request_goodput"]["mean"] or 0.0
    for policy in found["policies"]:
        row = by_policy[policy]
        pair = pairs.get((policy, first, "request_goodput"))
        goodput = row["request_goodput"]["mean"] or 0.0
        lines.append(
            f"| {policy} | {_shown(row['request_goodput'], 3)} | {_shown(row['token_goodput_1_1'], 1)} "
            f"| {row['attainment']['mean'] or 0.0:.0%} | {row['output_tokens_per_s']['mean'] or 0.0:.1f} "
            f"| {f'{goodput / base:.2f}' if base else '-'} | {'' if pair is None else _verdict(pair)} |"
        )
    return "\n".join(lines)


def _shown(value: dict[str, Any], digits: int) -> str:
    half = value["half"]
    return f"{value['mean'] or 0.0:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def _verdict(pair: dict[str, Any]) -> str:
    mean, half = pair["mean"], pair["half"]
    if half is None:
        return f"{mean:+.3f}"
    clear = "" if abs(mean) <= half else (" better" if mean > 0 else " worse")
    return f"{mean:+.3f} ±{half:.3f}{clear}"
