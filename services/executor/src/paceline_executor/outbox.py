"""Hands an engine's events to whoever reads them, without ever making the engine wait.

The bound is on reports, not on tokens: past it, neighbouring step reports are folded into one. Their tokens are kept,
because they belong to live attempts, whose number and length the engine bounds.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from paceline_executor.contract import Event, StepReport, TokenColumns


class Outbox:
    """A bounded queue of events: one engine thread (and callers of the engine) put, one reader drains."""

    def __init__(self, capacity: int = 256) -> None:
        if capacity < 2:
            raise ValueError("an outbox needs room for two reports")
        self._capacity = capacity
        self._events: list[Event] = []
        self._reports = 0
        self._ready = threading.Condition()
        self._wake: Callable[[], None] | None = None
        self.folded_reports = 0
        """Reports folded into others since the start: a reader that is too slow."""

    def put(self, *events: Event) -> None:
        """Append events; never blocks beyond the fold of a full queue."""
        if not events:
            return
        with self._ready:
            was_empty = not self._events
            self._events.extend(events)
            self._reports += sum(isinstance(event, StepReport) for event in events)
            if self._reports > self._capacity:
                self._fold()
            wake = self._wake if was_empty else None
            self._ready.notify_all()
        if wake is not None:
            wake()

    def drain(self) -> list[Event]:
        """Everything since the last call, oldest first."""
        with self._ready:
            events, self._events = self._events, []
            self._reports = 0
            return events

    def wait(self, timeout_s: float) -> bool:
        """Block until an event is there; False when the time is over."""
        with self._ready:
            return self._ready.wait_for(lambda: bool(self._events), timeout_s)

    def on_event(self, wake: Callable[[], None] | None) -> None:
        """Set what to call when the queue stops being empty; called at once if it is not empty now."""
        with self._ready:
            self._wake = wake
            pending = bool(self._events)
        if wake is not None and pending:
            wake()

    def _fold(self) -> None:
        """Merge each run of neighbouring step reports into one."""
        folded: list[Event] = []
        run: list[StepReport] = []
        for event in self._events:
            if isinstance(event, StepReport):
                run.append(event)
                continue
            if run:
                folded.append(merge_reports(run))
                run = []
            folded.append(event)
        if run:
            folded.append(merge_reports(run))
        self._events = folded
        left = sum(isinstance(event, StepReport) for event in folded)
        self.folded_reports += self._reports - left
        self._reports = left


def merge_reports(reports: Sequence[StepReport]) -> StepReport:
    """One report for several: rows in order, times and counts summed, the last one's state of things."""
    if len(reports) == 1:
        return reports[0]
    last = reports[-1]
    latest = {entry.attempt_key: entry for report in reports for entry in report.progress}
    return StepReport(
        step=last.step,
        plan_id=last.plan_id,
        step_ms=sum(report.step_ms for report in reports),
        decode_ms=sum(report.decode_ms for report in reports),
        prefill_ms=sum(report.prefill_ms for report in reports),
        decode_batch=sum(report.decode_batch for report in reports),
        decode_context_tokens=sum(report.decode_context_tokens for report in reports),
        prefill_calls=tuple(call for report in reports for call in report.prefill_calls),
        tokens=concat_tokens([report.tokens for report in reports]),
        progress=tuple(latest.values()),
        kv=last.kv,
        deviations=tuple(deviation for report in reports for deviation in report.deviations),
        moved_tokens=sum(report.moved_tokens for report in reports),
        merged_reports=sum(report.merged_reports for report in reports),
    )


def concat_tokens(parts: Sequence[TokenColumns]) -> TokenColumns:
    """Rows of several token columns, one after the other."""
    return TokenColumns(
        np.concatenate([part.attempt_keys for part in parts]),
        np.concatenate([part.first_indices for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.text_lengths for part in parts]),
        b"".join(part.text for part in parts),
    )
