"""What has been asked for lately: the demand side of the shadow prices."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core import lengths
from paceline_core.placement.view import Floats, RequestView

WINDOW_MS: Final = 30_000.0
CLASSES: Final = 32
_LEAST_MS: Final = 1000.0
"""A window that has only begun counts as this long."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Classes of requests, float64[J] each: every class is one recent request that stands for several."""

    rate_per_ms: Floats
    input_tokens: Floats
    output_tokens: Floats
    """Mean."""
    spread: Floats
    """Standard deviation of the log of the output length, about."""
    left_ms: Floats
    """Time to the last token when it came; infinite: any time does."""
    first_ms: Floats
    """Time to the first token; infinite unless latency class."""
    tbt_ms: Floats
    """0 unless latency class."""
    value: Floats

    def __len__(self) -> int:
        return len(self.rate_per_ms)


class DemandWindow:
    """A ring of the latest requests, no longer than `WINDOW_MS` back and `size` entries."""

    def __init__(self, size: int = 512) -> None:
        self._rows: Floats = np.zeros((size, 8))
        self._seen = 0
        self._begun_ms = float("nan")

    def add(self, request: RequestView, now_ms: float, value: float = 1.0) -> None:
        """A request came. Costs a few microseconds."""
        if self._seen == 0:
            self._begun_ms = now_ms
        self._rows[self._seen % len(self._rows)] = (
            now_ms,
            request.input_tokens,
            request.remaining_tokens,
            _log_spread(request),
            request.left_ms,
            request.first_left_ms,
            request.slo.tbt_ms,
            value,
        )
        self._seen += 1

    def demand(self, now_ms: float) -> Demand:
        """The classes now: at most `CLASSES` of the requests in the window, evenly picked, with the rate of all."""
        rows = self._rows[: min(self._seen, len(self._rows))]
        rows = rows[rows[:, 0] >= now_ms - WINDOW_MS]
        if not len(rows):
            return Demand(*np.zeros((8, 0)))
        full = self._seen > len(self._rows)
        since = rows[:, 0].min() if full else max(self._begun_ms, now_ms - WINDOW_MS)
        rate = len(rows) / max(now_ms - since, 1.0 if full else _LEAST_MS)
        picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), CLASSES)).round().astype(np.int64)]
        return Demand(np.full(len(picked), rate / len(picked)), *np.ascontiguousarray(picked[:, 1:].T))


def _log_spread(request: RequestView) -> float:
    """From the 16th and the 84th percentile, at bin resolution."""
    cdf = request.length_cdf
    low, high = np.searchsorted(cdf, (0.16, 0.84)).tolist()
    last, limit = lengths.K - 1, float(request.max_tokens)
    shortest = min(lengths.UPPER[min(low, last)], limit)
    return float(0.5 * np.log(min(lengths.UPPER[min(high, last)], limit) / shortest))
