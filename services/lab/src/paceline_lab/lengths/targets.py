"""The figures of an evaluation against the lines they are held to."""

import itertools
import math
from typing import Any

Document = dict[str, Any]

LEVELS = ("p50", "p90", "p95")


def targets(document: Document) -> list[Document]:
    """Rows {name, limit, value, met}; a figure that was not measured gives no row."""
    rows: list[Document] = []
    rows += _coverage(document)
    rows += _rivals(document)
    rows += _unseen(document)
    rows += _mix_change(document)
    rows += _refinement(document)
    return rows


def _row(name: str, limit: str, value: str, met: bool) -> Document:
    return {"name": name, "limit": limit, "value": value, "met": bool(met)}


def _gained(gain: Document) -> str:
    return f"{100 * gain['value']:+.1f} % ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def _points(covered: Document) -> float:
    """The largest distance of a coverage to its level, points."""
    gaps = [abs(100 * covered[level] - int(level[1:])) for level in LEVELS if level in covered]
    return max(gaps) if gaps else math.nan


def _coverage(document: Document) -> list[Document]:
    split = document.get("online", {}).get("prompt")
    if not split:
        return []
    scores = split["learners"][document["candidate"]]
    off = _points(scores["coverage"])
    shown = ", ".join(f"{level.upper()} {100 * scores['coverage'][level]:.1f} %" for level in LEVELS)
    return [
        _row(
            f"coverage on unseen prompts of known models ({split['scored']} outcomes)",
            "within 2 points, on 2,000 or more",
            f"{shown}; width {scores['log_width_80']:.2f}",
            off <= 2 and split["scored"] >= 2000,
        )
    ]


def _rivals(document: Document) -> list[Document]:
    rows = []
    for mode in ("static", "online"):
        for name, split in document.get(mode, {}).items():
            rivals = {rival: gain for rival, gain in split["gain"].items() if rival in document["rivals"]}
            if not rivals:
                continue
            closest = min(rivals, key=lambda rival: rivals[rival]["value"])
            gain = rivals[closest]
            rows.append(
                _row(
                    f"CRPS against every rival: {name}, {mode}",
                    "better than each",
                    f"{_gained(gain)} over {closest}",
                    gain["value"] > 0,
                )
            )
        split = document.get(mode, {}).get("prompt", {})
        for histogram in ("per-app histogram", "histogram of model and app"):
            if (over := split.get("gain", {}).get(histogram)) is None:
                continue
            rows.append(
                _row(
                    f"CRPS against the {histogram} on unseen prompts, {mode}",
                    "10 % or more",
                    _gained(over),
                    over["value"] >= 0.10,
                )
            )
    return rows


def _unseen(document: Document) -> list[Document]:
    rows = []
    for name, found in document.get("unseen_models", {}).get("pooled", {}).items():
        for after, limit in (("after_20", 5), ("after_200", 2)):
            point = found.get(after)
            if not point:
                continue
            for mode in ("frozen", "learning"):
                off = _points({level: value["mean"] for level, value in point[mode].items()})
                rows.append(
                    _row(
                        f"coverage for unseen model families ({name}), {after.replace('_', ' ')} outcomes, {mode}",
                        f"within {limit} points",
                        f"{off:.1f} points at most",
                        off <= limit,
                    )
                )
    return rows


def _mix_change(document: Document) -> list[Document]:
    rows = []
    for name, change in document.get("mix_change", {}).items():
        if not change["windows"]:
            continue
        good = {level: 100 * change[level]["good_windows"] for level in LEVELS}
        rows.append(
            _row(
                f"windows of 500 after a change of workload ({name})",
                "95 % within 2 points + 2 standard errors",
                ", ".join(f"{level.upper()} {share:.1f} %" for level, share in good.items()),
                min(good.values()) >= 95,
            )
        )
    return rows


def _refinement(document: Document) -> list[Document]:
    rows = []
    for mode, curve in document.get("refinement", {}).get("curves", {}).items():
        if mode == "arrival only":
            continue
        ratios = [point["p90_over_true"] for point in curve]
        rows.append(
            _row(
                f"P90 bound / true length shrinks as tokens come ({mode})",
                "falls at 25, 50, 75 %",
                " > ".join(f"{ratio:.2f}" for ratio in ratios),
                all(after < before for before, after in itertools.pairwise(ratios)),
            )
        )
    return rows
