"""Arguments of the emulated API: as many of the real names as are used, with their defaults."""

from dataclasses import dataclass, field
from typing import Any

DEFAULT_REQUEST_PRIORITY = 0.5


@dataclass
class SamplingParams:
    """How one request is sampled. `end_id` has to be given when there is no tokenizer."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    detokenize: bool = True
    n: int = 1
    best_of: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    prompt_ignore_length: int | None = None
    embedding_bias: Any = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")


@dataclass
class KvCacheConfig:
    """The KV memory."""

    enable_block_reuse: bool = True
    enable_partial_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    tokens_per_block: int = 32
    event_buffer_max_size: int = 0
    dtype: str = "auto"
    use_kv_cache_manager_v2: bool | str = "auto"


@dataclass
class SchedulerConfig:
    """The inner scheduler and the queue ahead of it."""

    capacity_scheduler_policy: str = "GUARANTEED_NO_EVICT"
    context_chunking_policy: str | None = None
    waiting_queue_policy: str = "fcfs"
    use_python_scheduler: bool = False


@dataclass
class KvCacheRetentionConfig:
    """How dear the blocks of a request are when memory is short: 0 to 100."""

    token_range_retention_configs: list[Any] = field(default_factory=list)
    decode_retention_priority: int = 35
    decode_duration_ms: int | None = None


@dataclass
class LoraConfig:
    """What the engine makes ready for adapters. Without it no request may name one."""

    lora_dir: list[str] = field(default_factory=list)
    lora_target_modules: list[str] = field(default_factory=list)
    max_lora_rank: int = 64
    max_loras: int | None = None
    max_cpu_loras: int | None = None


@dataclass
class LoRARequest:
    """An adapter by name. The engine knows it by its number."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass
class Faults:
    """What goes wrong, for tests."""

    ignore_aborts: bool = False
    """Cancels are enqueued and never carried out."""
    hang_after_iterations: int = 0
    """No iteration ends after that many; 0: never. `_check_health` still says that all is well."""
    fatal_after_iterations: int = 0
    """The executor dies after that many; 0: never."""
    older_build: bool = False
    """A build from before the nested statistics."""
