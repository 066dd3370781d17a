"""What an engine says to messages for the scheduler. Columns go over as bytes and lists: nothing loops over tokens."""

from collections.abc import Iterable

from paceline.common.v1 import attempt_pb2, engine_pb2
from paceline.executor.v1 import executor_pb2
from paceline_executor import contract
from paceline_executor.contract import AttemptState, EndReason, Ids

_END_REASONS = {
    EndReason.STOP: attempt_pb2.FINISH_REASON_STOP,
    EndReason.STOP_STRING: attempt_pb2.FINISH_REASON_STOP_STRING,
    EndReason.LENGTH: attempt_pb2.FINISH_REASON_LENGTH,
    EndReason.CANCELLED: attempt_pb2.FINISH_REASON_CANCELLED,
    EndReason.REJECTED: attempt_pb2.FINISH_REASON_REJECTED,
    EndReason.FAILED: attempt_pb2.FINISH_REASON_FAILED,
}
_STATES = {
    AttemptState.QUEUED: attempt_pb2.REQUEST_STATE_QUEUED,
    AttemptState.RUNNING: attempt_pb2.REQUEST_STATE_RUNNING,
    AttemptState.PAUSED: attempt_pb2.REQUEST_STATE_PAUSED,
    AttemptState.EVICTED: attempt_pb2.REQUEST_STATE_EVICTED,
    AttemptState.ENDED: attempt_pb2.REQUEST_STATE_FINISHED,
}
_ENDED_STATES = {
    EndReason.CANCELLED: attempt_pb2.REQUEST_STATE_CANCELLED,
    EndReason.REJECTED: attempt_pb2.REQUEST_STATE_REJECTED,
    EndReason.FAILED: attempt_pb2.REQUEST_STATE_FAILED,
}
_DEVIATIONS = {
    contract.DeviationReason.NO_SLOT: executor_pb2.DEVIATION_REASON_NO_SLOT,
    contract.DeviationReason.NO_KV: executor_pb2.DEVIATION_REASON_NO_KV,
    contract.DeviationReason.UNSUPPORTED: executor_pb2.DEVIATION_REASON_UNSUPPORTED,
}
_REPLAYS = {
    contract.ReplayMode.EXACT: attempt_pb2.REPLAY_MODE_EXACT,
    contract.ReplayMode.FAST: attempt_pb2.REPLAY_MODE_FAST,
}
_PAUSES = {
    contract.PauseMode.KEEP_KV: engine_pb2.PAUSE_MODE_KEEP_KV,
    contract.PauseMode.SWAP: engine_pb2.PAUSE_MODE_SWAP,
    contract.PauseMode.RECOMPUTE: engine_pb2.PAUSE_MODE_RECOMPUTE,
}
_GRANULARITIES = {
    contract.PlanGranularity.ITERATION: engine_pb2.PLAN_GRANULARITY_ITERATION,
    contract.PlanGranularity.FRAME: engine_pb2.PLAN_GRANULARITY_FRAME,
}
_PREFIXES = {
    contract.PrefixReuse.NONE: engine_pb2.PREFIX_REUSE_NONE,
    contract.PrefixReuse.ALIGNED: engine_pb2.PREFIX_REUSE_ALIGNED,
    contract.PrefixReuse.FAST: engine_pb2.PREFIX_REUSE_FAST,
}


def ids_to_bytes(ids: Ids) -> bytes:
    """Ids as little-endian int32."""
    return ids.astype("<i4", copy=False).tobytes()


def tokens_message(columns: contract.TokenColumns) -> attempt_pb2.TokenBatch:
    """Token columns, the payload serialized once for the whole line."""
    payload = attempt_pb2.TokenPayload(
        token_ids=ids_to_bytes(columns.token_ids),
        text_lengths=columns.text_lengths.astype("<u4", copy=False).tobytes(),
        text=columns.text,
    )
    return attempt_pb2.TokenBatch(
        attempt_keys=columns.attempt_keys.tolist(),
        first_indices=columns.first_indices.tolist(),
        counts=columns.counts.tolist(),
        payload=payload.SerializeToString(),
    )


def accepted_message(event: contract.AttemptAccepted) -> attempt_pb2.AttemptAccepted:
    """An acceptance."""
    return attempt_pb2.AttemptAccepted(
        attempt_key=event.attempt_key,
        prompt_ids=ids_to_bytes(event.prompt_ids),
        cached_tokens=event.cached_tokens,
    )


def ended_message(event: contract.AttemptEnded) -> attempt_pb2.AttemptEnded:
    """An end."""
    message = attempt_pb2.AttemptEnded(
        attempt_key=event.attempt_key,
        finish_reason=_END_REASONS[event.reason],
        output_tokens=event.output_tokens,
        prompt_tokens=event.prompt_tokens,
        stop_string=event.stop_string,
    )
    if event.reason in (EndReason.REJECTED, EndReason.FAILED):
        message.failure.reason = event.error_reason
        message.failure.message = event.message
        message.failure.retryable = event.retryable
    return message


def step_message(event: contract.StepReport) -> executor_pb2.StepReport:
    """A step."""
    message = executor_pb2.StepReport(
        step=event.step, plan_id=event.plan_id, step_ms=event.step_ms, prefill_ms=event.prefill_ms
    )
    if event.merged_reports == 1:
        # The decode of a merged report is a sum over steps: left out, or a reader would fit its model to it.
        message.decode_ms = event.decode_ms
        message.decode_batch = event.decode_batch
        message.decode_context_tokens = event.decode_context_tokens
    calls = event.prefill_calls
    if calls:
        message.prefill_tokens.extend([call.tokens for call in calls])
        message.prefill_context_tokens.extend([call.context_tokens for call in calls])
        message.prefill_call_ms.extend([call.ms for call in calls])
    if len(event.tokens.attempt_keys):
        message.tokens.CopyFrom(tokens_message(event.tokens))
    progress = event.progress
    if progress:
        message.progress_keys.extend([row.attempt_key for row in progress])
        message.progress_kv_tokens.extend([row.kv_tokens for row in progress])
        message.progress_states.extend([_STATES[row.state] for row in progress])
    return message


def deviation_messages(deviations: Iterable[contract.Deviation]) -> list[executor_pb2.Deviation]:
    """Deviations."""
    return [
        executor_pb2.Deviation(
            plan_id=row.plan_id, attempt_key=row.attempt_key, reason=_DEVIATIONS[row.reason]
        )
        for row in deviations
    ]


def kv_message(use: contract.KvUse) -> executor_pb2.KvUse:
    """KV use."""
    return executor_pb2.KvUse(
        used_tokens=use.used_tokens, cached_tokens=use.cached_tokens, resident=use.resident, live=use.live
    )


def live_message(row: contract.LiveAttempt) -> executor_pb2.LiveAttempt:
    """One row of the live table. The prompt is in `prompt_ids` alone: this is the largest message there is."""
    spec = row.spec
    message = executor_pb2.LiveAttempt(
        spec=attempt_pb2.AttemptSpec(
            attempt_key=spec.attempt_key,
            request_id=spec.request_id,
            forced_ids=ids_to_bytes(spec.forced_ids),
            replay=_REPLAYS[spec.replay],
            await_more_forced=spec.await_more_forced,
            max_tokens=spec.max_tokens,
            sampling=_sampling_message(spec.sampling),
            cache_salt=spec.cache_salt,
            adapter=spec.adapter,
        ),
        context=spec.context,
        state=_STATES[row.state]
        if row.ended is None
        else _ENDED_STATES.get(row.ended.reason, _STATES[row.state]),
        prompt_ids=ids_to_bytes(row.prompt_ids),
        kv_tokens=row.kv_tokens,
        output_tokens=row.output_tokens,
    )
    if row.ended is not None:
        message.ended.CopyFrom(ended_message(row.ended))
    return message


def _sampling_message(sampling: contract.Sampling) -> attempt_pb2.SamplingParams:
    message = attempt_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
    )
    message.logit_bias.update(dict(sampling.logit_bias))
    return message


def capabilities_message(own: contract.Capabilities) -> engine_pb2.EngineCapabilities:
    """Capabilities."""
    return engine_pb2.EngineCapabilities(
        model=own.model,
        model_hash=own.model_hash,
        tokenizer_id=own.tokenizer_id,
        chat_template=own.chat_template,
        bos_token=own.bos_token,
        eos_token=own.eos_token,
        backend=own.backend,
        build=own.build,
        device=own.device,
        speed_factor=own.speed_factor,
        plan_granularity=_GRANULARITIES[own.plan_granularity],
        pause_modes=[_PAUSES[mode] for mode in own.pause_modes],
        run_set_change_cost_ms=own.run_set_change_cost_ms,
        max_batch=own.max_batch,
        max_resident=own.max_resident,
        max_context_tokens=own.max_context_tokens,
        kv_capacity_tokens=own.kv_capacity_tokens,
        kv_bytes_per_token=own.kv_bytes_per_token,
        kv_type=own.kv_type,
        prefill_chunk_tokens=own.prefill_chunk_tokens,
        kv_transfer=own.kv_transfer,
        prefix_reuse=_PREFIXES[own.prefix_reuse],
        replay_modes=[_REPLAYS[mode] for mode in own.replay_modes],
        priority=own.priority,
        vocab_size=own.vocab_size,
        adapters=own.adapters,
    )
