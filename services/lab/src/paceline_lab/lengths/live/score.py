"""How often answers were within the P90 that was declared at their arrival."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CLIP_TOLERANCE_TOKENS = 0.5


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: what was declared at its arrival, and how long its answer was."""

    app: str
    max_tokens: int
    p50: float
    p90: float
    source: str
    output_tokens: int
    cut: bool
    """It ended at `max_tokens`: longer is all that is known."""

    @property
    def scored(self) -> bool:
        """True if the bound could have been missed: one at `max_tokens` covers whatever comes."""
        return self.p90 < self.max_tokens - _CLIP_TOLERANCE_TOKENS

    @property
    def within(self) -> bool:
        """True if the answer was no longer than declared."""
        return not self.cut and self.output_tokens <= self.p90


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of a group of requests."""

    requests: int
    scored: int
    clipped: int
    """Left out: their bound stands at `max_tokens`."""
    coverage_p90: float
    """Of the scored ones; NaN without any."""
    standard_error: float
    coverage_p90_with_clipped: float
    """Where a clipped bound counts as kept."""
    width: float
    """Geometric mean of declared P90 over declared P50 of the scored ones; NaN without any."""
    cut: int
    sources: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON; what is not known is null."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def coverage(rows: Sequence[Answered]) -> Coverage:
    """Coverage of some requests."""
    scored = [row for row in rows if row.scored]
    within = sum(row.within for row in scored)
    share = within / len(scored) if scored else math.nan
    return Coverage(
        requests=len(rows),
        scored=len(scored),
        clipped=len(rows) - len(scored),
        coverage_p90=share,
        standard_error=math.sqrt(share * (1 - share) / len(scored)) if scored else math.nan,
        coverage_p90_with_clipped=(within + len(rows) - len(scored)) / len(rows) if rows else math.nan,
        width=_geometric_mean([row.p90 / max(row.p50, 1.0) for row in scored]),
        cut=sum(row.cut for row in rows),
        sources=dict(Counter(row.source for row in rows)),
    )


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values)) if values else math.nan
