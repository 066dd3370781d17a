"""How often answers were within the P90 that was declared at their arrival."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

_CLIP_TOLERANCE_TOKENS = 0.5
_LEVEL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: what was declared at its arrival, and how long its answer was."""

    app: str
    max_tokens: int
    p50: float
    p90: float
    p_cut: float
    """Declared probability that the answer is cut at `max_tokens`."""
    source: str
    output_tokens: int
    cut: bool
    """It ended at `max_tokens`: longer is all that is known."""

    @property
    def open(self) -> bool:
        """True if the bound is below the limit, so that the answer itself can miss it."""
        return self.p90 < self.max_tokens - _CLIP_TOLERANCE_TOKENS

    @property
    def within(self) -> float:
        """1 if the answer was no longer than declared, else 0. Of a cut answer whose bound stands at the limit: the
        chance that the forecast gave to an end within its P90, given that it was cut (as for censored outcomes in
        Czado, Gneiting and Held, 2009). Calibrated forecasts have 0.9 in the mean, whatever is cut."""
        if not self.cut:
            return float(self.output_tokens <= self.p90)
        if self.open:
            return 0.0
        return min(1.0, max(0.0, 1.0 - (1.0 - _LEVEL) / max(self.p_cut, 1e-9)))


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of a group of requests."""

    requests: int
    coverage_p90: float
    """Mean of `Answered.within`; NaN without any."""
    standard_error: float
    open: int
    """Those whose bound is below the limit."""
    coverage_p90_open: float
    """Of those alone; NaN without any. They are where the forecast was short: a hard subset."""
    width: float
    """Geometric mean of declared P90 over declared P50; NaN without any."""
    cut: int
    cut_declared: float
    """Cut answers that the forecasts add up to."""
    sources: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON; what is not known is null."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def coverage(rows: Sequence[Answered]) -> Coverage:
    """Coverage of some requests."""
    within = [row.within for row in rows]
    below = [row.within for row in rows if row.open]
    return Coverage(
        requests=len(rows),
        coverage_p90=float(np.mean(within)) if within else math.nan,
        standard_error=float(np.std(within)) / math.sqrt(len(within)) if within else math.nan,
        open=len(below),
        coverage_p90_open=float(np.mean(below)) if below else math.nan,
        width=_geometric_mean([row.p90 / max(row.p50, 1.0) for row in rows]),
        cut=sum(row.cut for row in rows),
        cut_declared=sum(row.p_cut for row in rows),
        sources=dict(Counter(row.source for row in rows)),
    )


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values)) if values else math.nan
