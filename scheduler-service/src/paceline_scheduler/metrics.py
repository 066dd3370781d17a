"""What a scheduler measures about itself. Names live in `paceline_runtime.telemetry.names`."""

from collections import Counter
from collections.abc import Iterable, Mapping

from paceline_core.batch.state import RunState
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import (
    PLAN_DURATION,
    PLANS,
    PREEMPTIONS,
    RESUMPTIONS,
    SCHEDULER_REQUESTS,
    SHED,
    Metric,
)
from paceline_scheduler.shedding import SHED_PREFIX
from paceline_scheduler.state import SchedulerState

_STATES = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED, RunState.EVICTED)
PREEMPTED = "preempted_"
"""Prefix of the counts of `SchedulerState.counts` that are preemptions, by what the attempt was taken to."""
RESUMED = "resumed_"
"""Prefix of those that are returns into the run set, by where the attempt was."""
_TOLD: Mapping[str, Metric] = {PREEMPTED: PREEMPTIONS, RESUMED: RESUMPTIONS, SHED_PREFIX: SHED}


def counted(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """The counts of one kind, by the rest of their name."""
    return {
        name.removeprefix(prefix): count
        for name, count in counts.items()
        if name.startswith(prefix) and count
    }


class SchedulerMetrics:
    """Records plans as they are made, and the rest when it is read or flushed."""

    def __init__(self, instruments: Instruments, state: SchedulerState, policy: str) -> None:
        self._instruments = instruments
        self._state = state
        self._policy = policy
        self._told: Counter[str] = Counter()
        instruments.observe(SCHEDULER_REQUESTS, self._requests)

    def planned(self, plan_ms: float, *, sent: bool) -> None:
        """One plan was made; `sent` if it said something new."""
        self._instruments.record(PLAN_DURATION, plan_ms / 1000, policy=self._policy)
        if sent:
            self._instruments.add(PLANS, policy=self._policy, reason="changed")

    def flush(self) -> None:
        """Tell what was counted since the last call."""
        for prefix, metric in _TOLD.items():
            for reason, count in counted(self._state.counts, prefix).items():
                name = prefix + reason
                if count > self._told[name]:
                    self._instruments.add(metric, count - self._told[name], reason=reason)
                    self._told[name] = count

    def _requests(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        """Rows by state. Read from another thread: a count may be a moment old."""
        table, identity = self._state.table, self._state.engine.identity
        engine = "" if identity is None else identity.engine_id
        states = table.state[table.live_rows()]
        return [(float((states == s).sum()), {"engine": engine, "state": s.name.lower()}) for s in _STATES]
