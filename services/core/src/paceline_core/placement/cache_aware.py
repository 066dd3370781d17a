"""Cache-aware: the longest prefix, unless the load is out of balance."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.policy import EstimateUse, Placement, choose, eligible
from paceline_core.placement.view import FleetView, RequestView


@dataclass(frozen=True)
class CacheAware:
    """SGLang's router rule: out of balance, the shortest queue; else the longest cached prefix when it covers
    `cache_share` of the prompt; else the engine with the least in its cache. Ties go to the shorter queue."""

    cache_share: float = 0.3
    balance_requests: float = 32.0
    """Out of balance: this many requests between the longest and the shortest queue ..."""
    balance_ratio: float = 1.5
    """... and this ratio."""
    weighted: bool = False
    """True: queues count by the engines' speed."""

    name: ClassVar[str] = "cache-aware"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: queue lengths, missing prompt tokens or tokens in memory, as the case may be."""
        queue = (fleet.live_requests + 1) / fleet.speed if self.weighted else fleet.live_requests
        may, _ = eligible(request, fleet)
        longest = float(np.where(may, queue, -np.inf).max(initial=-np.inf))
        shortest = float(np.where(may, queue, np.inf).min(initial=np.inf))
        if longest - shortest > self.balance_requests and longest > self.balance_ratio * shortest:
            return choose(request, fleet, queue, lambda i: f"out of balance: {queue[i]:.0f} queued")
        missing = request.uncached_tokens(len(fleet))
        cached = request.input_tokens - missing
        tie = queue / (1.0 + max(longest, 0.0))
        if float(np.where(may, cached, 0.0).max(initial=0.0)) > self.cache_share * request.input_tokens:
            return choose(request, fleet, missing + tie, lambda i: f"{cached[i]:.0f} prompt tokens cached")
        held = fleet.kv_used_tokens + fleet.pending_prefill_tokens
        return choose(request, fleet, held + tie, lambda i: f"{held[i]:.0f} tokens in memory")
