"""Settings of the llama.cpp engine."""

from dataclasses import dataclass
from pathlib import Path

from paceline_executor.contract import PrefixReuse


@dataclass(frozen=True)
class LlamaCppConfig:
    """One engine: one process should run one, with one thread each and no more engines than free cores."""

    model_path: Path
    """GGUF file."""
    model_name: str = ""
    """Served name; empty: the file's stem."""
    max_batch: int = 16
    """Most sequences worked on in one step."""
    max_resident: int = 16
    """Slots: most sequences with KV in the engine. KV memory is taken for all of them at start."""
    context_tokens: int = 2048
    """Context of each slot, prompt and output together."""
    chunk_tokens: int = 64
    """Prefill chunk; chunk borders are multiples of it whatever the budget, or answers would depend on the schedule."""
    prefill_budget_tokens: int = 256
    """Prefill per step when the plan does not say."""
    threads: int = 1
    prefix_reuse: PrefixReuse = PrefixReuse.ALIGNED
    prefix_cache_bytes: int = 256 << 20
    """Host memory for the KV of ended prompts; 0: prefixes are shared with live attempts only."""
    max_live: int = 4096
    """Attempts that have not ended; over it a new one is rejected with QUEUE_FULL."""
    max_tombstones: int = 1024
    tombstone_ttl_s: float = 60.0
    max_tickets: int = 64
    ticket_ttl_s: float = 30.0
    speed_factor: float = 1.0
    """At least 1: every step is stretched to this multiple of its time (declared in the capabilities)."""
    event_capacity: int = 256
    """Unread step reports before they are folded together."""
    fault_abort_marker: str | None = None
    """For fault tests only: a prompt with this text aborts the process when it first decodes."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= self.max_resident:
            raise ValueError("max_batch must be between 1 and max_resident")
        if self.chunk_tokens < 1 or self.context_tokens < self.chunk_tokens:
            raise ValueError("chunk_tokens must be between 1 and context_tokens")
        if self.speed_factor < 1.0:
            raise ValueError("speed_factor stretches steps, so it is at least 1")
        if self.max_live < 1 or self.max_tombstones < 0 or self.max_tickets < 1:
            raise ValueError("max_live and max_tickets must be positive, max_tombstones not negative")
