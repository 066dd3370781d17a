"""Packs an engine's events into as few report messages as order and size allow."""

from collections.abc import Iterable, Iterator

from paceline.executor.v1 import executor_pb2
from paceline_executor.contract import (
    AttemptAccepted,
    AttemptEnded,
    EndReason,
    Event,
    Republished,
    StepReport,
)
from paceline_executor.to_proto import (
    accepted_message,
    deviation_messages,
    ended_message,
    kv_message,
    step_message,
    tokens_message,
)

MAX_REPORT_BYTES = 1 << 20
_ROW_BYTES = 64
_ENDS_IN_A_STEP = (EndReason.STOP, EndReason.STOP_STRING, EndReason.LENGTH)


def reports_of(events: Iterable[Event]) -> Iterator[executor_pb2.Report]:
    """Reports of about a megabyte at most, which a reader may take in the order of their fields.

    A report is read steps first, then republished tokens: a step after republished tokens therefore opens a new one, or
    its tokens would seem to leave a gap.
    """
    report = executor_pb2.Report()
    size_bytes = 0
    for event in events:
        if size_bytes >= MAX_REPORT_BYTES or (isinstance(event, StepReport) and report.republished):
            yield report
            report, size_bytes = executor_pb2.Report(), 0
        match event:
            case StepReport():
                report.steps.append(step_message(event))
                if event.deviations:
                    report.deviations.extend(deviation_messages(event.deviations))
                report.kv.CopyFrom(kv_message(event.kv))
                size_bytes += _ROW_BYTES * len(event.tokens.attempt_keys) + 8 * len(event.tokens.token_ids)
                size_bytes += len(event.tokens.text)
            case AttemptAccepted():
                report.accepted.append(accepted_message(event))
                size_bytes += 4 * len(event.prompt_ids)
            case AttemptEnded():
                report.ended.append(ended_message(event))
                if event.reason not in _ENDS_IN_A_STEP:
                    # The last step's KV use still counts what this end has freed.
                    report.ClearField("kv")
            case Republished():
                if len(event.tokens.attempt_keys):
                    report.republished.append(tokens_message(event.tokens))
                    size_bytes += 8 * len(event.tokens.token_ids) + len(event.tokens.text)
        size_bytes += _ROW_BYTES
    if size_bytes:
        yield report
