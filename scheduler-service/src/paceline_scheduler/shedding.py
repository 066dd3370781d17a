"""Carries out what a plan gives up: ends it with SLO_UNATTAINABLE, and says what could have been met instead."""

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline_core.batch.laxity import attainable_ms, out_of_reach
from paceline_core.batch.view import BatchView, IntArray
from paceline_core.slo import Slo, SloClass
from paceline_runtime.errors import Reason
from paceline_scheduler.ends import Ends
from paceline_scheduler.state import SchedulerState

SHED_PREFIX = "shed_"
"""Prefix of the counts of `SchedulerState.counts` that are attempts given up, by cause."""
MISSED = "missed"
"""The target is past."""
HOPELESS = "hopeless"
"""The target is still to come, and the policy does not expect to meet it."""


class Shedding:
    """Ends what plans give up. Whether to give up is the policy's choice; here it is only told."""

    def __init__(self, state: SchedulerState, ends: Ends) -> None:
        self._state = state
        self._ends = ends

    def shed(self, view: BatchView, rows: IntArray, now_ms: float) -> None:
        """End these rows of the view, unless they are being ended already."""
        if not len(rows):
            return
        table, counts = self._state.table, self._state.counts
        missed = out_of_reach(view, rows, now_ms).tolist()
        attainable = attainable_ms(view, now_ms)[rows].tolist()
        for row, was_missed, attainable_here in zip(
            view.row_id[rows].tolist(), missed, attainable, strict=True
        ):
            attempt = table.at(row)
            cause = MISSED if was_missed else HOPELESS
            known_ms = attainable_here if self._state.fitter.model.known else 0.0
            failure = attempt_pb2.Failure(
                reason=Reason.SLO_UNATTAINABLE,
                message=_message(attempt.slo, self._asked_ms(row), known_ms, missed=was_missed),
                attainable_ms=known_ms,
            )
            if self._ends.give_up(attempt, failure):
                counts[SHED_PREFIX + cause] += 1
                attempt.note(now_ms - table.arrival_ms[row], "shed", cause)

    def look(self, now_ms: float) -> None:
        """Ask for a plan if a target passed that nobody planned for meanwhile: time alone is no event."""
        state = self._state
        rows = np.flatnonzero(state.table.alive & state.table.drops)
        if len(rows):
            view = state.table.view(state.engine.capacity, state.fitter.model, rows)
            if out_of_reach(view, np.arange(len(rows)), now_ms).any():
                state.mark_dirty()

    def _asked_ms(self, row: int) -> float:
        """The budget that the attainable one compares with, from the arrival of the request."""
        table = self._state.table
        match SloClass(int(table.slo_class[row])):
            case SloClass.LATENCY:
                return float(table.ttft_ms[row] + table.generated[row] * table.tbt_ms[row])
            case SloClass.TASK if np.isfinite(table.task_due_ms[row]):
                return float(table.task_due_ms[row] - table.arrival_ms[row])
            case _:
                return float(table.e2e_ms[row])


def _message(slo: Slo, asked_ms: float, attainable: float, *, missed: bool) -> str:
    what = {
        SloClass.LATENCY: "the next token",
        SloClass.DEADLINE: "the last token",
        SloClass.TASK: f"the end of task {slo.task_id!r}",
        SloClass.BEST_EFFORT: "the last token",
    }[slo.slo_class]
    if slo.slo_class is SloClass.BEST_EFFORT:
        start = "the request was given up"
    else:
        verb = "was due" if missed else "is due"
        start = f"the objective is out of reach: {what} {verb} {asked_ms:.0f} ms after the arrival"
    if not attainable:
        return start
    return f"{start}; {attainable:.0f} ms would have been attainable"
