"""Between wire messages and the values of `paceline_core`."""

import math

import numpy as np
from numpy.typing import NDArray

from paceline.common.v1 import attempt_pb2, engine_pb2, estimate_pb2, slo_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core import lengths
from paceline_core.batch.state import RunState
from paceline_core.batch.view import Capacity
from paceline_core.engine_model import EngineModel
from paceline_core.slo import OnMiss, Slo, SloClass

_PRIOR_MEAN_TOKENS = 256.0
_MIDDLE = 0.5
_BOUND_LEVEL = 0.9
_EDGES: list[int] = lengths.EDGES.tolist()
_CHARACTERS_PER_TOKEN = 4
_ON_MISS: frozenset[int] = frozenset(OnMiss)


def slo_from(message: slo_pb2.Slo) -> Slo:
    """The objective; one without a target is best effort (routers resolve defaults before they submit)."""
    on_miss = OnMiss(int(message.on_miss)) if int(message.on_miss) in _ON_MISS else OnMiss.UNSPECIFIED
    target = message.WhichOneof("target")
    if target == "latency":
        return Slo(
            SloClass.LATENCY, ttft_ms=message.latency.ttft_ms, tbt_ms=message.latency.tbt_ms, on_miss=on_miss
        )
    if target == "deadline":
        return Slo(SloClass.DEADLINE, e2e_ms=message.deadline.e2e_ms, on_miss=on_miss)
    if target == "task":
        task = message.task
        return Slo(
            SloClass.TASK, e2e_ms=task.e2e_ms, task_id=task.task_id, task_final=task.final, on_miss=on_miss
        )
    return Slo(SloClass.BEST_EFFORT, on_miss=on_miss)


def slo_to(slo: Slo) -> slo_pb2.Slo:
    """The objective as a message."""
    message = slo_pb2.Slo(on_miss=slo_pb2.OnMiss.ValueType(slo.on_miss))
    match slo.slo_class:
        case SloClass.LATENCY:
            message.latency.ttft_ms, message.latency.tbt_ms = slo.ttft_ms, slo.tbt_ms
        case SloClass.DEADLINE:
            message.deadline.e2e_ms = slo.e2e_ms
        case SloClass.TASK:
            message.task.task_id, message.task.e2e_ms, message.task.final = (
                slo.task_id,
                slo.e2e_ms,
                slo.task_final,
            )
        case SloClass.BEST_EFFORT:
            message.best_effort.SetInParent()
    return message


def cdf_from(estimate: estimate_pb2.LengthEstimate) -> NDArray[np.float64]:
    """[K] Length CDF. An estimate that is absent or not sound counts as none: geometric with mean 256 tokens.

    `generated_tokens` needs no care: what is already out is conditioned away by whoever reads the CDF.
    """
    if len(estimate.probabilities) == lengths.K:
        try:
            masses = np.asarray(estimate.probabilities, dtype=np.float64)
            return np.asarray(lengths.cdf_from_probabilities(masses)[0])
        except ValueError:
            return PRIOR_CDF
    return PRIOR_CDF


def output_bound_tokens(submit: scheduler_pb2.Submit) -> int:
    """Output index that a request is not expected to pass: the upper edge of the bin of its P90, given what is out; 0
    without a sound estimate. Plain Python, as this is one row on the way of every arrival."""
    masses = submit.estimate.probabilities
    if len(masses) != lengths.K:
        return 0
    out = len(submit.spec.forced_ids) // 4
    # Of the bin that it is in now, the part that is still to come.
    coming = [
        (edge, mass * min((edge - out) / (edge - lower), 1.0))
        for lower, edge, mass in zip((0, *_EDGES), _EDGES, masses, strict=False)
        if edge > out
    ]
    total = sum(mass for _, mass in coming)
    if not math.isfinite(total) or total <= 0:
        return 0
    reached = 0.0
    for edge, mass in coming:
        reached += mass
        if reached >= _BOUND_LEVEL * total:
            return min(edge, submit.spec.max_tokens)
    return submit.spec.max_tokens


def rest_tokens_from(forecast: estimate_pb2.TaskForecast) -> float:
    """Output tokens that a task needs along its critical path after the current stage, by the median of its forecast;
    0 when the forecast is empty or not sound."""
    levels, tokens = list(forecast.quantiles), list(forecast.critical_path_tokens)
    if not levels or len(levels) != len(tokens) or sorted(levels) != levels:
        return 0.0
    path = float(np.interp(_MIDDLE, levels, tokens))
    later = 1.0 - forecast.stage_shares[0] if forecast.stage_shares else 0.0
    rest = path * later
    return rest if math.isfinite(rest) and rest > 0 else 0.0


def _prior() -> NDArray[np.float64]:
    upper = 1.0 - np.exp(-lengths.EDGES / _PRIOR_MEAN_TOKENS)
    return np.asarray(lengths.cdf_from_probabilities(np.diff(upper, prepend=0.0))[0])


PRIOR_CDF = _prior()


def prompt_tokens_guess(spec: attempt_pb2.AttemptSpec) -> int:
    """Prompt tokens before the engine has said: exact for ids, about a quarter of the bytes for text."""
    if spec.WhichOneof("prompt") == "token_ids":
        return len(spec.token_ids) // 4
    return max(1, len(spec.text) // _CHARACTERS_PER_TOKEN)


def capacity_from(message: engine_pb2.EngineCapabilities) -> Capacity:
    """Limits of the engine; what an engine leaves out is unbounded by it."""
    context = message.max_context_tokens or 2**31 - 1
    max_batch = message.max_batch or 1
    max_resident = max(message.max_resident, max_batch)
    pauses = message.pause_modes
    return Capacity(
        max_batch=max_batch,
        max_resident=max_resident,
        kv_tokens=message.kv_capacity_tokens or max_resident * context,
        max_context_tokens=context,
        prefill_chunk_tokens=message.prefill_chunk_tokens or 64,
        run_set_change_cost_ms=message.run_set_change_cost_ms,
        keeps_kv_when_paused=not pauses or engine_pb2.PAUSE_MODE_KEEP_KV in pauses,
        frame_only=message.plan_granularity == engine_pb2.PLAN_GRANULARITY_FRAME,
    )


def model_to(model: EngineModel) -> engine_pb2.EngineModel:
    """The fitted model as a message."""
    return engine_pb2.EngineModel(
        a_ms=model.a_ms,
        b_ms=model.b_ms,
        c_ms=model.c_ms,
        a1_ms=model.a1_ms,
        p0_ms=model.p0_ms,
        d_ms=model.d_ms,
        e_ms=model.e_ms,
        decode_samples=model.decode_samples,
        prefill_samples=model.prefill_samples,
    )


_STATE_OF_REASON = {
    attempt_pb2.FINISH_REASON_CANCELLED: RunState.CANCELLED,
    attempt_pb2.FINISH_REASON_REJECTED: RunState.REJECTED,
    attempt_pb2.FINISH_REASON_EXPIRED: RunState.EXPIRED,
    attempt_pb2.FINISH_REASON_FAILED: RunState.FAILED,
}


_ALIVE = frozenset(int(s) for s in (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED, RunState.EVICTED))


def run_state(state: attempt_pb2.RequestState.ValueType) -> RunState | None:
    """Where a live attempt stands; None for states that are not a live attempt's."""
    return RunState(state) if state in _ALIVE else None


def end_state(reason: attempt_pb2.FinishReason.ValueType) -> RunState:
    """The state of an attempt that ended with `reason`."""
    return _STATE_OF_REASON.get(reason, RunState.FINISHED)


def completed(reason: attempt_pb2.FinishReason.ValueType) -> bool:
    """True when the answer is whole."""
    return reason in (
        attempt_pb2.FINISH_REASON_STOP,
        attempt_pb2.FINISH_REASON_STOP_STRING,
        attempt_pb2.FINISH_REASON_LENGTH,
    )


def finite(value: float, instead: float = 0.0) -> float:
    """`value`, or `instead` when it is infinite or not a number: for JSON-friendly fields."""
    return value if math.isfinite(value) else instead
