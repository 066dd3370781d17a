"""How a request stands against its objective, measured where the client stands."""

import math

from paceline.common.v1 import slo_pb2
from paceline_core.slo import Slo, SloClass


class EdgeTimeline:
    """Arrival times of a request's tokens at the router, folded as they come. All times are ms since arrival."""

    __slots__ = ("first_ms", "in_time", "last_ms", "max_gap_ms", "tokens")

    def __init__(self) -> None:
        self.first_ms = 0.0
        self.last_ms = 0.0
        self.max_gap_ms = 0.0
        self.tokens = 0
        self.in_time = 0

    def take(self, slo: Slo, first_index: int, count: int, at_ms: float) -> None:
        """Tokens first_index .. first_index + count - 1 arrived at `at_ms`."""
        if self.tokens == 0:
            self.first_ms = at_ms
        elif at_ms - self.last_ms > self.max_gap_ms:
            self.max_gap_ms = at_ms - self.last_ms
        self.last_ms = at_ms
        self.tokens += count
        if slo.slo_class is SloClass.LATENCY:
            # Token i is in time when ttft + i * tbt >= at: the first such i, in closed form.
            late = at_ms - slo.ttft_ms
            first_in_time = first_index if late <= 0 else max(first_index, math.ceil(late / slo.tbt_ms))
            self.in_time += max(0, first_index + count - first_in_time)

    def outcome(self, slo: Slo, completed: bool, ended_ms: float, budget_ms: float) -> slo_pb2.SloOutcome:
        """The score at the end.

        `completed`: it ended well. `budget_ms`: of the deadline and task classes, from this request's
        arrival.
        """
        if slo.slo_class is SloClass.LATENCY:
            attained = completed and self.in_time == self.tokens
            if self.tokens == 0:
                attained = completed and ended_ms <= slo.ttft_ms
            in_time = self.in_time
        elif slo.slo_class is SloClass.BEST_EFFORT:
            attained, in_time = completed, self.tokens
        else:
            attained = completed and ended_ms <= budget_ms
            in_time = self.tokens if attained else 0
        gaps = max(self.tokens - 1, 0)
        return slo_pb2.SloOutcome(
            slo_class=int(slo.slo_class),  # type: ignore[arg-type]
            attained=attained,
            tokens_in_time=in_time,
            tokens=self.tokens,
            ttft_ms=self.first_ms,
            tbt_mean_ms=(self.last_ms - self.first_ms) / gaps if gaps else 0.0,
            tbt_max_ms=self.max_gap_ms,
            ttlt_ms=self.last_ms if self.tokens else ended_ms,
        )
