"""Messages of tasks to values and back, and what is not accepted."""

import math
from collections.abc import Sequence

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline_core.tasks.forecast import TaskForecast
from paceline_core.tasks.graph import MAX_CALLS, Call, TaskGraph
from paceline_predictor.tasks.model import TaskOutcome, TaskReport
from paceline_runtime.errors import PacelineError, invalid

MAX_TASKS = 256
MAX_CALLS_TOGETHER = 16_384
MAX_ID_CHARS = 256
MAX_APP_CHARS = 64
MAX_PARENTS_TOGETHER = 65_536
"""Parents of all calls of a message."""


def graphs(request: predictor_pb2.ForecastTaskRequest) -> list[TaskGraph]:
    """The tasks of a call. Raises INVALID_ARGUMENT, which names the field at fault."""
    if len(request.tasks) > MAX_TASKS:
        raise invalid(f"at most {MAX_TASKS} tasks a call, got {len(request.tasks)}", field="tasks")
    calls = sum(len(task.calls) for task in request.tasks)
    if calls > MAX_CALLS_TOGETHER:
        raise invalid(f"at most {MAX_CALLS_TOGETHER} calls together, got {calls}", field="tasks")
    return [graph(task, f"tasks[{i}]") for i, task in enumerate(request.tasks)]


def graph(message: predictor_pb2.TaskGraph, field: str) -> TaskGraph:
    """One task. Unknown parents, cycles and ids that occur twice are no errors: see `paceline_core.tasks.graph`."""
    if len(message.calls) > MAX_CALLS:
        raise invalid(f"at most {MAX_CALLS} calls a task, got {len(message.calls)}", field=f"{field}.calls")
    if len(message.app) > MAX_APP_CHARS:
        raise invalid(f"app is longer than {MAX_APP_CHARS} characters", field=f"{field}.app")
    if sum(len(call.parent_request_ids) for call in message.calls) > MAX_PARENTS_TOGETHER:
        raise invalid(f"at most {MAX_PARENTS_TOGETHER} parents a task", field=f"{field}.calls")
    return TaskGraph(message.app, tuple(_call(c, f"{field}.calls[{i}]") for i, c in enumerate(message.calls)))


def outcomes(request: predictor_pb2.ObserveRequest) -> list[TaskOutcome]:
    """The ended tasks of a message, without those that are malformed.

    Raises INVALID_ARGUMENT when there are too many.
    """
    if len(request.tasks) > MAX_TASKS:
        raise invalid(f"at most {MAX_TASKS} ended tasks a message, got {len(request.tasks)}", field="tasks")
    found = []
    for message in request.tasks:
        try:
            found.append(TaskOutcome(graph(message.graph, "graph"), message.completed))
        except PacelineError:
            continue  # the caller counts what is missing
    return found


def forecasts(values: Sequence[TaskForecast]) -> predictor_pb2.ForecastTaskResponse:
    """The answers, in order."""
    return predictor_pb2.ForecastTaskResponse(forecasts=[_forecast(value) for value in values])


def model_info(report: TaskReport | None, warning: str) -> predictor_pb2.ModelInfo:
    """The task model in use; without one, why."""
    if report is None:
        return predictor_pb2.ModelInfo(name="tasks", kind="tasks", warning=warning, active=False)
    return predictor_pb2.ModelInfo(
        name="tasks",
        version=report.version,
        kind="tasks",
        observed=report.observed,
        coverage_p90=report.coverage_p90,
        warning=warning,
        active=True,
        file_bytes=report.file_bytes,
    )


def _call(message: predictor_pb2.TaskCall, field: str) -> Call:
    for name, text in (("request_id", message.request_id), ("actor", message.actor)):
        if len(text) > MAX_ID_CHARS:
            raise invalid(f"{name} is longer than {MAX_ID_CHARS} characters", field=f"{field}.{name}")
    if not math.isfinite(message.duration_ms) or message.duration_ms < 0:
        raise invalid("duration_ms must be finite and not negative", field=f"{field}.duration_ms")
    return Call(
        message.request_id,
        tuple(message.parent_request_ids),
        message.stage,
        message.actor,
        message.tool,
        message.prompt_tokens,
        message.output_tokens,
        message.duration_ms,
        message.ended,
    )


def _forecast(value: TaskForecast) -> estimate_pb2.TaskForecast:
    return estimate_pb2.TaskForecast(
        remaining_stages=value.remaining_stages,
        remaining_calls=value.remaining_calls,
        quantiles=value.quantiles,
        remaining_tokens=value.remaining_tokens,
        critical_path_tokens=value.critical_tokens,
        stage_shares=value.stage_shares,
        source=value.source,
        model_version=value.model_version,
        last_stage_probability=value.last_stage_probability,
        similarity=value.similarity,
        pattern=value.pattern,
        coming_stages=[
            estimate_pb2.StageForecast(
                probability=stage.probability,
                calls=stage.calls,
                prompt_tokens=stage.prompt_tokens,
                critical_path_tokens=stage.critical_tokens,
                tool_ms=stage.tool_ms,
            )
            for stage in value.coming
        ],
        coverage_p90=value.coverage_p90,
    )
