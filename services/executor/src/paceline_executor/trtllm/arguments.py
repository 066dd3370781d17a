"""The engine's own configuration, made from ours: what is served is what the agent's accounts assume."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from paceline_executor.trtllm.config import TrtllmSection
from paceline_executor.trtllm.lora import adapters_of, lora_config


@dataclass(frozen=True)
class EngineSizes:
    """Bounds that every kind of engine has."""

    max_batch: int
    max_resident: int
    context_tokens: int


def llm_arguments(section: TrtllmSection, api: ModuleType, sizes: EngineSizes) -> dict[str, Any]:
    """Keyword arguments of the LLM class, apart from the model."""
    plan = section.mode == "plan"
    kv: dict[str, Any] = {
        "enable_block_reuse": True,
        "free_gpu_memory_fraction": section.free_gpu_memory_fraction,
        "tokens_per_block": section.tokens_per_block,
        # Explicit: `auto` picks the second manager for some models, and with it another scheduling policy.
        "use_kv_cache_manager_v2": section.kv_cache_manager_v2,
    }
    if section.kv_capacity_tokens:
        kv["max_tokens"] = section.kv_capacity_tokens
    if section.host_cache_bytes:
        kv["host_cache_size"] = section.host_cache_bytes
    arguments: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "tensor_parallel_size": section.tensor_parallel,
        "pipeline_parallel_size": section.pipeline_parallel,
        # Held requests count: the plan limits what really runs.
        "max_batch_size": sizes.max_resident if plan else sizes.max_batch,
        "max_num_tokens": section.max_num_tokens,
        "max_seq_len": sizes.context_tokens,
        "enable_chunked_prefill": True,
        "kv_cache_config": api.KvCacheConfig(**kv),
        "scheduler_config": api.SchedulerConfig(
            capacity_scheduler_policy=_policy(api, "GUARANTEED_NO_EVICT"), waiting_queue_policy="priority"
        ),
        "stream_interval": section.stream_interval,
        "enable_iter_perf_stats": True,
        "return_perf_metrics": True,
    }
    if section.adapters:
        arguments["lora_config"] = lora_config(api, adapters_of(section.adapters), section.adapters_on_gpu)
    if plan:
        arguments["disable_overlap_scheduler"] = True
    return arguments


def _policy(api: ModuleType, name: str) -> Any:
    kinds = getattr(api, "CapacitySchedulerPolicy", None)
    return name if kinds is None else getattr(kinds, name)
