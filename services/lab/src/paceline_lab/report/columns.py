"""Columns of a report's tables: figures of one policy on one variant, over its seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline_lab.paired import Interval, interval
from paceline_lab.report.experiment import Variant
from paceline_lab.report.running import Row


@dataclass(frozen=True, slots=True)
class Cells:
    """What a cell of the table is made of. Rows are sorted by seed."""

    variant: Variant
    policy: str
    mine: Sequence[Row]
    base: Sequence[Row]
    """Of the policy that others are compared with."""


@dataclass(frozen=True, slots=True)
class Column:
    """A title, and what stands below it."""

    title: str
    text: Callable[[Cells], str]


def with_interval(title: str, name: str, digits: int) -> Column:
    """Mean of a figure with its 95 % interval."""
    return Column(title, lambda cells: shown(interval(values(cells.mine, name)), digits))


def plain(title: str, name: str, digits: int = 0) -> Column:
    """Mean of a figure."""
    return Column(title, lambda cells: f"{mean(cells.mine, name):.{digits}f}")


def ratio(title: str, name: str) -> Column:
    """Mean of a figure over that of the base."""

    def text(cells: Cells) -> str:
        base = mean(cells.base, name)
        return f"{mean(cells.mine, name) / base:.2f}" if base else "-"

    return Column(title, text)


def attained(title: str, kind: str = "") -> Column:
    """Share of jobs that attained; of one class where given."""
    return Column(title, lambda cells: _attainment(cells.mine, kind))


def _attainment(rows: Sequence[Row], kind: str) -> str:
    if not kind:
        return f"{mean(rows, 'attainment'):.0%}"
    found = [row["classes"][kind]["attainment"] for row in rows if kind in row["classes"]]
    return f"{sum(found) / len(found):.0%}" if found else "-"


def _share_of_bound(cells: Cells) -> str:
    found = [row["share_of_bound"]["request_goodput"] for row in cells.mine]
    known = [share for share in found if share is not None]
    return f"{sum(known) / len(known):.0%}" if known else "-"


def _ttft(cells: Cells) -> str:
    """P99 of the latency class; the worst seed."""
    found = [row["classes"]["latency"]["ttft_ms"]["p99"] for row in cells.mine if "latency" in row["classes"]]
    if not found:
        return "-"
    return "never" if any(value is None for value in found) else f"{max(found) / 1e3:.1f}"


def _wasted(cells: Cells) -> str:
    return f"{mean(cells.mine, 'wasted_tokens') / max(mean(cells.mine, 'output_tokens'), 1.0):.0%}"


def _moved(cells: Cells) -> str:
    """Moves made for each hundred calls."""
    made = sum(row["moves"].get("made", 0) for row in cells.mine)
    return f"{100 * made / max(sum(row['calls'] for row in cells.mine), 1):.1f}"


POLICY = Column("policy", lambda cells: cells.policy)
LABEL = Column("", lambda cells: cells.variant.label)
OF_BOUND = Column("of bound", _share_of_bound)
TTFT = Column("TTFT P99 s", _ttft)
WASTED = Column("wasted", _wasted)
MOVED = Column("moves a 100 calls", _moved)
PUBLISHED = Column("published", lambda cells: cells.variant.published.get(cells.policy, ""))


def values(rows: Sequence[Row], name: str) -> list[float]:
    """A figure of each row."""
    return [float(row[name] or 0.0) for row in rows]


def mean(rows: Sequence[Row], name: str) -> float:
    """Mean of a figure; 0 without rows."""
    return sum(values(rows, name)) / max(len(rows), 1)


def shown(value: Interval, digits: int) -> str:
    """A mean and half its interval, where there is one."""
    half = "" if math.isnan(value.half) else f" ±{value.half:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"
