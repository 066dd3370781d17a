"""Messages of the scheduler to what an engine takes. Ids come as bytes and stay arrays: nothing loops over tokens."""

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline_executor.contract import NO_IDS, AttemptSpec, EngineError, Ids, Plan, ReplayMode, Sampling


def ids_of(data: bytes) -> Ids:
    """Little-endian int32 as an array; raises `EngineError` if it is cut."""
    if not data:
        return NO_IDS
    if len(data) % 4:
        raise EngineError("INVALID_TOKEN_ID", f"token ids are 4 bytes each; got {len(data)} bytes")
    return np.frombuffer(data, "<i4").astype(np.int32, copy=False)


def spec_of(message: executor_pb2.AddAttempt) -> AttemptSpec:
    """A new attempt; raises `EngineError` for what cannot be read."""
    spec = message.spec
    form = spec.WhichOneof("prompt")
    return AttemptSpec(
        attempt_key=spec.attempt_key,
        request_id=spec.request_id,
        max_tokens=spec.max_tokens,
        prompt_text=spec.text if form == "text" else None,
        prompt_ids=ids_of(spec.token_ids) if form == "token_ids" else None,
        forced_ids=ids_of(spec.forced_ids),
        replay=ReplayMode.FAST if spec.replay == attempt_pb2.REPLAY_MODE_FAST else ReplayMode.EXACT,
        await_more_forced=spec.await_more_forced,
        sampling=sampling_of(spec.sampling),
        cache_salt=spec.cache_salt,
        adapter=spec.adapter,
        output_bound_tokens=message.output_bound_tokens,
        context=message.context,
    )


def sampling_of(message: attempt_pb2.SamplingParams) -> Sampling:
    """Sampling parameters; zeros become the defaults that the contract states."""
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p or 1.0,
        top_k=message.top_k,
        seed=message.seed,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty or 1.0,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
    )


def plan_of(message: executor_pb2.Plan) -> Plan:
    """A plan."""
    return Plan(
        plan_id=message.plan_id,
        attempt_keys=tuple(message.attempt_keys),
        token_limits=tuple(message.token_limits),
        evict=tuple(message.evict),
        max_batch=message.max_batch,
        prefill_budget_tokens=message.prefill_budget_tokens,
        valid_for_steps=message.valid_for_steps,
    )
