"""Settings of a simulated engine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SimulatedConfig:
    """One simulated engine; hundreds fit in a process."""

    model_name: str = "simulated"
    """Served name."""
    profile: str = "a100-80-8b"
    """Name of a shipped profile, or path of a YAML file."""
    seed: int = 0
    """Of the language: engines of equal seed give equal answers and can take over each other's attempts."""
    time_scale: float = 1.0
    """Real seconds per simulated second: 0.1 runs ten times faster. Reports are in real time."""
    speed_factor: float = 1.0
    """Every step takes this multiple of its time (declared in the capabilities)."""
    max_batch: int = 16
    """Most sequences worked on in one step."""
    max_resident: int = 32
    """Most sequences with KV in the engine."""
    context_tokens: int = 2048
    """Longest context of one sequence, prompt and output together."""
    kv_capacity_tokens: int = 0
    """KV memory, tokens; 0: what the profile says."""
    chunk_tokens: int = 64
    """Prefill chunk; a prefill call is cut at a multiple of it."""
    prefill_budget_tokens: int = 512
    """Prefill per step when the plan does not say."""
    output_median_tokens: float = 200.0
    """Median of the answers' own length (log-normal, drawn from seed and prompt)."""
    output_sigma: float = 0.8
    """Standard deviation of the log of that length."""
    max_live: int = 65_536
    """Attempts that have not ended; over it a new one is rejected with QUEUE_FULL."""
    max_tombstones: int = 4096
    tombstone_ttl_s: float = 60.0
    max_tickets: int = 64
    ticket_ttl_s: float = 30.0
    event_capacity: int = 256
    """Unread step reports before they are folded together."""
    fault_abort_marker: str | None = None
    """For fault tests only: a prompt with this text aborts the process when it first decodes."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= self.max_resident:
            raise ValueError("max_batch must be between 1 and max_resident")
        if self.chunk_tokens < 1 or self.context_tokens < self.chunk_tokens:
            raise ValueError("chunk_tokens must be between 1 and context_tokens")
        if self.time_scale <= 0 or self.speed_factor <= 0:
            raise ValueError("time_scale and speed_factor must be above 0")
        if self.output_median_tokens < 1 or self.output_sigma < 0:
            raise ValueError("output_median_tokens must be 1 or more, output_sigma 0 or more")
