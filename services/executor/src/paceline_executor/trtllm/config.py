"""Section `executor.trtllm`."""

from typing import Literal

from pydantic import Field

from paceline_runtime.config_model import ConfigModel


class TrtllmSection(ConfigModel):
    """TensorRT-LLM, embedded in this process; its image brings it."""

    mode: Literal["frame", "plan"] = "frame"
    """`frame` uses the public interface alone; `plan` wraps the inner scheduler of a pinned version, for one rank."""
    emulated: bool = False
    """Use the emulator instead of TensorRT-LLM: no GPU, made-up tokens, time from a profile."""
    profile: str = "a100-80-8b"
    """Emulated: how long iterations take; a shipped engine profile or the path of a YAML file."""
    time_scale: float = Field(default=1.0, gt=0)
    """Emulated: real seconds per emulated second."""
    seed: int = 0
    """Emulated: seed of what is said."""
    output_median_tokens: float = Field(default=200.0, ge=1)
    """Emulated: median of the answers' own length, tokens."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each layer."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """GPUs that share the layers out."""
    max_num_tokens: int = Field(default=8192, ge=64)
    """Tokens of one iteration, prefill and decode together."""
    tokens_per_block: int = Field(default=32, ge=1)
    """Size of a KV block, tokens."""
    kv_capacity_tokens: int = Field(default=0, ge=0)
    """KV memory, tokens; 0: what the engine finds (emulated: what the profile says)."""
    kv_bytes_per_token: int = Field(default=0, ge=0)
    """KV of one token in all layers, for estimates; 0: not known (emulated: what the profile says)."""
    free_gpu_memory_fraction: float = Field(default=0.88, gt=0, lt=1)
    """Share of the free GPU memory that KV takes."""
    host_cache_bytes: int = Field(default=0, ge=0)
    """Host memory for KV blocks that left the GPU; 0: none."""
    kv_cache_manager_v2: bool = False
    """The second KV manager, which schedules for utilisation and not for certainty. Never chosen by itself here."""
    stream_interval: int = Field(default=1, ge=1)
    """Iterations between two items of a stream."""
    frame_iterations: int = Field(default=32, ge=1)
    """Iterations between two times that a running request may be taken out."""
    frame_ms: float = Field(default=500.0, gt=0)
    """The same as a time, ms; whichever comes first."""
    reserve_tokens: int = Field(default=256, ge=1)
    """Tokens asked for at once where the expected length is not known, or was passed: the engine reserves memory for
    them all. More are a resume."""
    longest_reserve_tokens: int = Field(default=2048, ge=1)
    """Most tokens asked for at once, whatever length is expected."""
    abort_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds after which an aborted request that has not ended takes the engine out."""
    progress_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds without progress that take the engine out."""
    health_interval_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks at the engine's health."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters: folder of each, by the name that requests give in place of the model's."""
    adapters_on_gpu: int = Field(default=8, ge=1)
    """Adapters that fit on the GPU at once; the others wait in host memory."""
