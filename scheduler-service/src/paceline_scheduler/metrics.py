"""What a scheduler measures about itself. Names live in `paceline_runtime.telemetry.names`."""

from collections import Counter
from collections.abc import Iterable, Mapping

from paceline_core.batch.state import RunState
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import PLAN_DURATION, PLANS, PREEMPTIONS, SCHEDULER_REQUESTS
from paceline_scheduler.state import SchedulerState

_STATES = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED, RunState.EVICTED)
PREEMPTED = "preempted_"
"""Prefix of the counts of `SchedulerState.counts` that are preemptions, by what the attempt was taken to."""


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
        for name, count in self._state.counts.items():
            if name.startswith(PREEMPTED) and count > self._told[name]:
                self._instruments.add(
                    PREEMPTIONS, count - self._told[name], reason=name.removeprefix(PREEMPTED)
                )
                self._told[name] = count

    def _requests(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        """Rows by state. Read from another thread: a count may be a moment old."""
        table, identity = self._state.table, self._state.engine.identity
        engine = "" if identity is None else identity.engine_id
        states = table.state[table.live_rows()]
        return [(float((states == s).sum()), {"engine": engine, "state": s.name.lower()}) for s in _STATES]
