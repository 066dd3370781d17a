"""From what the clients saw to a row of the report."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from paceline.common.v1 import attempt_pb2
from paceline_lab.bench.faults.chaos import FaultRecord
from paceline_lab.bench.faults.verdict import Damage, judge
from paceline_lab.bench.faults.work import Call


def failure_of(call: Call) -> str:
    """Why a call did not end as its undisturbed twin or by its own cancel; empty: it did."""
    if call.finished is None:
        return call.problem or "no end"
    assert call.answer is not None
    reason = call.finished.finish_reason
    if reason == call.answer.finish_reason or (call.cancelled and _was_cancelled(call)):
        if call.finished.output_tokens != call.count:
            return f"the end says {call.finished.output_tokens} tokens, {call.count} came"
        return ""
    name = attempt_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
    return f"{name}: {call.finished.failure.reason} {call.finished.failure.message}".strip()


def damage_of(call: Call) -> Damage:
    """The tokens of a call against its undisturbed twin."""
    assert call.answer is not None
    return judge(call.received, call.answer, complete=not (call.cancelled and _was_cancelled(call)))


def row_of(
    mode: str, calls: Sequence[Call], leaked: dict[str, int], records: Sequence[FaultRecord]
) -> dict[str, Any]:
    """The row of a durability mode."""
    damage = Damage()
    refusals: Counter[str] = Counter()
    for call in calls:
        damage += damage_of(call)
        refusals += call.refusals
    attempts = [call.finished.attempts for call in calls if call.finished is not None]
    return {
        "durability": mode,
        "requests": len(calls),
        "tokens": sum(call.count for call in calls),
        "failed_requests": sum(bool(failure_of(call)) for call in calls),
        "lost": damage.lost,
        "duplicated": damage.duplicated,
        "spliced": damage.spliced,
        "reordered": damage.reordered,
        "leaked": leaked,
        "cancelled_requests": sum(call.cancelled and _was_cancelled(call) for call in calls),
        "replayed_requests": sum(number > 1 for number in attempts),
        "attempts_max": max(attempts, default=0),
        "reattached": sum(call.attaches for call in calls),
        "refused_and_tried_again": dict(refusals),
        "behaviours": dict(Counter(call.behaviour.value for call in calls)),
        "faults": dict(Counter(record.fault for record in records if record.durability == mode)),
        "hit_streaming": sum(record.streaming for record in records if record.durability == mode),
    }


def described(call: Call) -> dict[str, Any] | None:
    """A damaged call in words; None when nothing is wrong with it."""
    why, damage = failure_of(call), damage_of(call)
    if not why and damage == Damage():
        return None
    assert call.answer is not None
    return {
        "request_id": call.request_id,
        "durability": call.durability,
        "behaviour": call.behaviour.value,
        "failure": why,
        "lost": damage.lost,
        "duplicated": damage.duplicated,
        "spliced": damage.spliced,
        "reordered": damage.reordered,
        "tokens": call.count,
        "wanted_tokens": len(call.answer.ids),
        "attempts": call.finished.attempts if call.finished is not None else 0,
        "attaches": call.attaches,
        "refusals": dict(call.refusals),
    }


def _was_cancelled(call: Call) -> bool:
    return call.finished is not None and call.finished.finish_reason == attempt_pb2.FINISH_REASON_CANCELLED
