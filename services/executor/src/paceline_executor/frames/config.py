"""Settings of the agent in front of an engine that takes requests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameConfig:
    """Bounds and patience."""

    model_name: str
    max_batch: int = 64
    """Most requests that run at once."""
    max_resident: int = 64
    """Most requests in the engine; above `max_batch` only where it can hold some back."""
    context_tokens: int = 4096
    kv_capacity_tokens: int = 1 << 20
    frame_iterations: int = 32
    """Iterations between two times that a running request may be taken out."""
    frame_ms: float = 500.0
    """The same as a time; whichever comes first."""
    reserve_tokens: int = 256
    """Tokens asked for at once where no bound is known, or past it: an engine that reserves the worst case wastes no
    more. More are a resume."""
    longest_reserve_tokens: int = 2048
    """Most tokens asked for at once, whatever the bound says."""
    max_queued: int = 2
    """Requests in the engine's own queue above which none is added."""
    abort_timeout_s: float = 10.0
    """An aborted request that lasts longer takes the engine out."""
    progress_timeout_s: float = 60.0
    """Without a token or an iteration for so long, while some are due, the engine is taken out."""
    health_interval_s: float = 2.0
    run_set_change_cost_ms: float = 0.0
    prefill_chunk_tokens: int = 32
    speed_factor: float = 1.0
    max_live: int = 65_536
    max_tombstones: int = 4096
    tombstone_ttl_s: float = 60.0
    event_capacity: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= self.max_resident:
            raise ValueError("max_batch must be between 1 and max_resident")
        if self.context_tokens > self.kv_capacity_tokens:
            raise ValueError("a whole context must fit into the KV memory")
        counts = (self.frame_iterations, self.reserve_tokens, self.longest_reserve_tokens)
        if min(counts) < 1 or self.frame_ms <= 0:
            raise ValueError("frame_iterations, frame_ms and the reserves must be above 0")
