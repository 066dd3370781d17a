"""Service level objectives: what a request declares about time, and when a token counts.

All times are milliseconds since the arrival of the request at the router. A token is in time when it arrives by
`token_due_ms(index)` (latency class), or when the last token arrives by the deadline (deadline and task classes:
all or nothing).
"""

from dataclasses import dataclass
from enum import IntEnum


class SloClass(IntEnum):
    """Values equal those of `paceline.common.v1.SloClass`."""

    LATENCY = 1
    DEADLINE = 2
    TASK = 3
    BEST_EFFORT = 4


class OnMiss(IntEnum):
    """What to do when the target is out of reach. Values equal those of `paceline.common.v1.OnMiss`."""

    UNSPECIFIED = 0
    """The policy chooses: served when there is room, or ended before any work was done for it."""
    FINISH = 1
    DROP = 2


@dataclass(frozen=True, slots=True)
class Slo:
    """One resolved objective.

    `ttft_ms`, `tbt_ms`: latency class. `e2e_ms`: deadline class, the whole answer; task class, the whole task.
    Unused times are 0. Times that are used are greater than 0: `check` says so.
    """

    slo_class: SloClass
    ttft_ms: float = 0.0
    tbt_ms: float = 0.0
    e2e_ms: float = 0.0
    task_id: str = ""
    task_final: bool = False
    on_miss: OnMiss = OnMiss.UNSPECIFIED

    def problem(self) -> str | None:
        """What is wrong with it, for the client; None when it is sound."""
        used = {
            SloClass.LATENCY: ("ttft_ms", "tbt_ms"),
            SloClass.DEADLINE: ("e2e_ms",),
            SloClass.TASK: ("e2e_ms",),
            SloClass.BEST_EFFORT: (),
        }[self.slo_class]
        for name in used:
            value = getattr(self, name)
            if not 0 < value <= MAX_BUDGET_MS:
                return f"{name} must be greater than 0 and at most {MAX_BUDGET_MS:.0f}, got {value:g}"
        if self.slo_class is SloClass.TASK and not self.task_id:
            return "the task class needs a task id"
        return None

    def token_due_ms(self, index: int) -> float:
        """When output token `index` (from 0) is due, ms since arrival; infinite for best effort."""
        if self.slo_class is SloClass.LATENCY:
            return self.ttft_ms + index * self.tbt_ms
        if self.slo_class is SloClass.BEST_EFFORT:
            return float("inf")
        return self.e2e_ms


MAX_BUDGET_MS = 7 * 24 * 3600 * 1000.0
