"""The emulated LLM class: checks arguments as the real one does, then hands requests to the executor."""

import itertools
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from paceline_core.engines.roofline import step_times
from paceline_core.engines.shipped import load_profile
from paceline_executor.simulated.driver import Driver, LoopDriver
from paceline_executor.simulated.language import END_ID, language
from paceline_executor.trtllm.emulator.blocks import BlockPool, Holding
from paceline_executor.trtllm.emulator.executor import PyExecutor
from paceline_executor.trtllm.emulator.parameters import (
    DEFAULT_REQUEST_PRIORITY,
    Faults,
    KvCacheConfig,
    KvCacheRetentionConfig,
    LoraConfig,
    LoRARequest,
    SamplingParams,
    SchedulerConfig,
)
from paceline_executor.trtllm.emulator.request import LlmRequest
from paceline_executor.trtllm.emulator.result import RequestOutput
from paceline_executor.trtllm.emulator.scheduler import (
    BindCapacityScheduler,
    BindMicroBatchScheduler,
    KVCacheV2Scheduler,
    RequestScheduler,
    SimpleScheduler,
)
from paceline_executor.trtllm.emulator.speaker import Speaker
from paceline_executor.trtllm.emulator.stats import IterationResult, StatsQueue
from paceline_executor.trtllm.emulator.waiting_queue import FCFSWaitingQueue, PriorityWaitingQueue

_log = logging.getLogger(__name__)


class FakeLLM:
    """Stands in for `tensorrt_llm.LLM`. `model` names a profile of step times; `emulated_*` have no counterpart."""

    lives_on_the_loop = True
    """Its methods must be called on the event loop, `shutdown` included."""

    def __init__(
        self,
        model: str = "a100-80-8b",
        *,
        skip_tokenizer_init: bool = True,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        max_batch_size: int = 64,
        max_num_tokens: int = 8192,
        max_seq_len: int = 4096,
        enable_chunked_prefill: bool = True,
        kv_cache_config: KvCacheConfig | None = None,
        scheduler_config: SchedulerConfig | None = None,
        lora_config: LoraConfig | None = None,
        stream_interval: int = 1,
        enable_iter_perf_stats: bool = False,
        return_perf_metrics: bool = False,
        disable_overlap_scheduler: bool = False,
        cuda_graph_config: Any = None,
        emulated_driver: Driver | None = None,
        emulated_time_scale: float = 1.0,
        emulated_seed: int = 0,
        emulated_output_median_tokens: float = 200.0,
        emulated_words: Sequence[int] = (),
        emulated_end_id: int = END_ID,
        emulated_faults: Faults | None = None,
    ) -> None:
        kv, scheduling = kv_cache_config or KvCacheConfig(), scheduler_config or SchedulerConfig()
        profile = load_profile(model)
        self._language = language(emulated_seed)
        self._max_seq_len = max_seq_len
        self._lora = lora_config
        if lora_config is not None and len(lora_config.lora_dir) != 1 and not lora_config.lora_target_modules:
            raise AssertionError("several adapters need lora_target_modules")
        self._faults = emulated_faults or Faults()
        self._priorities = scheduling.waiting_queue_policy == "priority"
        self._client_ids = itertools.count(1)
        self._events = StatsQueue(max(kv.event_buffer_max_size, 1))
        self._event_ids = itertools.count()
        self._wants_events = kv.event_buffer_max_size > 0
        self._stats = StatsQueue() if enable_iter_perf_stats else None
        blocks = (kv.max_tokens or profile.kv_capacity_tokens) // kv.tokens_per_block
        pool = BlockPool(blocks, kv.tokens_per_block, reuse=kv.enable_block_reuse, on_event=self._kv_event)
        second = kv.use_kv_cache_manager_v2 in (True, "auto")
        self._executor = PyExecutor(
            emulated_driver or LoopDriver(),
            step_times(profile.scaled(emulated_time_scale)),
            _scheduler(
                pool, max_batch_size, max_num_tokens, kv, chunked=enable_chunked_prefill, second=second
            ),
            PriorityWaitingQueue() if self._priorities else FCFSWaitingQueue(),
            pool,
            Speaker(self._language, emulated_output_median_tokens, emulated_words, emulated_end_id),
            max_batch_size=max_batch_size,
            stream_interval=stream_interval,
            allocates_inline=second,
            end_id=emulated_end_id,
            stats=self._stats,
            faults=self._faults,
        )

    def generate_async(
        self,
        inputs: list[int] | str | Mapping[str, Any],
        sampling_params: SamplingParams | None = None,
        lora_request: LoRARequest | None = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
        disaggregated_params: Any = None,
        trace_headers: Mapping[str, str] | None = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        conversation_params: Any = None,
        cache_salt: str | None = None,
        priority: float = DEFAULT_REQUEST_PRIORITY,
    ) -> RequestOutput:
        """Submit; raises ValueError, TypeError, NotImplementedError and RuntimeError here, not in the stream."""
        if self._executor.is_shutdown or self._executor.fatal_error is not None:
            raise RuntimeError("LLM is shutting down")
        prompt = self._prompt_of(inputs)
        sampling = sampling_params or SamplingParams()
        self._check(prompt, sampling, priority)
        if lora_request is not None and self._lora is None:
            raise ValueError(
                f"LoRA adapter {lora_request.lora_name}: the engine was made without lora_config"
            )
        if disaggregated_params is not None or prompt_adapter_request is not None:
            raise NotImplementedError("the emulator has neither disaggregation nor prompt adapters")
        client_id = next(self._client_ids)
        result = RequestOutput(client_id, prompt, sampling, self._executor.cancel)
        holding = Holding()
        if kv_cache_retention_config is not None:
            holding.priority = kv_cache_retention_config.decode_retention_priority
        salt = zlib.crc32((cache_salt or "").encode())
        # By number: two adapters of one number are the same to the engine.
        adapter = 0 if lora_request is None else zlib.crc32(lora_request.lora_int_id.to_bytes(8, "little"))
        self._executor.enqueue(
            LlmRequest(
                request_id=0,
                py_client_id=client_id,
                prompt=prompt,
                sampling=sampling,
                priority=priority,
                salt=salt ^ adapter,
                adapter=adapter,
                respond=result.put,
                holding=holding,
            )
        )
        return result

    def get_stats_async(self, timeout: float | None = 2) -> IterationResult:
        """Rows as iterations end. Whoever reads a row takes it from all others."""
        if self._stats is None:
            raise RuntimeError("statistics need enable_iter_perf_stats")
        return IterationResult(self._stats, 2 if timeout is None else timeout)

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> IterationResult:
        """Blocks stored and removed."""
        if not self._wants_events:
            raise RuntimeError("KV events need event_buffer_max_size above 0")
        return IterationResult(self._events, 2 if timeout is None else timeout)

    def shutdown(self) -> None:
        """Stop for good."""
        self._executor.shutdown()

    def _check_health(self) -> bool:
        """True while there was no fatal error, also while nothing moves."""
        return self._executor.fatal_error is None and not self._executor.is_shutdown

    def _prompt_of(self, inputs: object) -> list[int]:
        if isinstance(inputs, Mapping):
            inputs = inputs.get("prompt_token_ids", [])
        if isinstance(inputs, str):
            raise ValueError("skip_tokenizer_init is set: only token ids are taken")
        if not isinstance(inputs, list):
            raise TypeError(f"the inputs must be a list of int, got {type(inputs)}")
        return inputs

    def _check(self, prompt: list[int], sampling: SamplingParams, priority: float) -> None:
        if not prompt:
            raise ValueError("the prompt is empty")
        if sampling.end_id is None:
            raise ValueError("end_id has to be set when there is no tokenizer")
        if len(prompt) + 1 > self._max_seq_len:
            raise ValueError(f"the prompt has {len(prompt)} tokens, max_seq_len is {self._max_seq_len}")
        if not 0 <= priority <= 1:
            raise ValueError(f"priority must be in [0, 1], got {priority}")
        if sampling.n != 1 or sampling.embedding_bias is not None:
            raise NotImplementedError("the emulator has neither several sequences nor biases")
        if priority != DEFAULT_REQUEST_PRIORITY and not self._priorities:
            _log.debug("priority %s is ignored by a first-come-first-served queue", priority)

    def _kv_event(self, kind: str, key: int) -> None:
        if self._wants_events:
            self._events.put({"event_id": next(self._event_ids), "data": {"type": kind, "block_hash": key}})


def _scheduler(
    pool: BlockPool,
    max_batch_size: int,
    max_num_tokens: int,
    kv: KvCacheConfig,
    *,
    chunked: bool,
    second: bool,
) -> RequestScheduler:
    micro = BindMicroBatchScheduler(max_batch_size, max_num_tokens, kv.tokens_per_block, chunked=chunked)
    if second:
        return KVCacheV2Scheduler(micro, pool, max_batch_size)
    return SimpleScheduler(BindCapacityScheduler(pool, max_batch_size), micro)
