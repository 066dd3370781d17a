"""Objectives between the wire and `paceline_core.slo`."""

from typing import Final

from paceline.common.v1 import slo_pb2
from paceline_core.slo import OnMiss, Slo, SloClass
from paceline_runtime.errors import PacelineError, Reason, invalid

CLASS_NAMES: Final = {
    SloClass.LATENCY: "latency",
    SloClass.DEADLINE: "deadline",
    SloClass.TASK: "task",
    SloClass.BEST_EFFORT: "best_effort",
}


def declared(message: slo_pb2.Slo) -> Slo | None:
    """The objective that a client declared; None when it declared none. Raises INVALID_SLO.

    A task without a budget of its own keeps `e2e_ms` 0: the task has it.
    """
    target = message.WhichOneof("target")
    if target is None:
        return None
    on_miss = wanted_on_miss(message)
    if target == "latency":
        latency = message.latency
        slo = Slo(SloClass.LATENCY, ttft_ms=latency.ttft_ms, tbt_ms=latency.tbt_ms, on_miss=on_miss)
    elif target == "deadline":
        slo = Slo(SloClass.DEADLINE, e2e_ms=message.deadline.e2e_ms, on_miss=on_miss)
    elif target == "task":
        task = message.task
        slo = Slo(
            SloClass.TASK, e2e_ms=task.e2e_ms, task_id=task.task_id, task_final=task.final, on_miss=on_miss
        )
        if task.e2e_ms == 0 and task.task_id:
            return slo
    else:
        slo = Slo(SloClass.BEST_EFFORT, on_miss=on_miss)
    problem = slo.problem()
    if problem is not None:
        raise invalid(f"slo: {problem}", field="slo", reason=Reason.INVALID_SLO)
    return slo


def wanted_on_miss(message: slo_pb2.Slo) -> OnMiss:
    """What the client wants when the objective, declared or not, is out of reach."""
    try:
        return OnMiss(message.on_miss)
    except ValueError:
        return OnMiss.UNSPECIFIED


def to_wire(slo: Slo, given: slo_pb2.Slo | None = None) -> slo_pb2.Slo:
    """The resolved objective; what `given` says of a task (parents, stage) is kept."""
    message = slo_pb2.Slo(on_miss=slo_pb2.OnMiss.ValueType(slo.on_miss))
    if slo.slo_class is SloClass.LATENCY:
        message.latency.ttft_ms, message.latency.tbt_ms = slo.ttft_ms, slo.tbt_ms
    elif slo.slo_class is SloClass.DEADLINE:
        message.deadline.e2e_ms = slo.e2e_ms
    elif slo.slo_class is SloClass.TASK:
        if given is not None:
            message.task.CopyFrom(given.task)
        message.task.task_id, message.task.e2e_ms, message.task.final = (
            slo.task_id,
            slo.e2e_ms,
            slo.task_final,
        )
    else:
        message.best_effort.SetInParent()
    return message


def from_wire(message: slo_pb2.Slo) -> Slo:
    """A resolved objective read back. Raises INTERNAL when it is not resolved."""
    slo = declared(message)
    if slo is None:
        raise PacelineError(Reason.INTERNAL, "a recorded request has no objective")
    return slo
