"""Llumnix: the freest engine, by virtual usage, and moves from the least free to the freest."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.placement.moves import Move, Rectification
from paceline_core.placement.policy import EstimateUse, Placement, choose
from paceline_core.placement.residents import Ints
from paceline_core.placement.view import FleetView, Floats, RequestView

_NOBODY: Ints = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Llumnix:
    """Freeness = (KV capacity - virtual usage) / batch: about the steps until memory is full (OSDI'24). The virtual
    usage counts the prompts that wait as if they were in."""

    weighted: bool = False
    """True: freeness counts by the engine's speed."""
    out_below: float = 10.0
    """Freeness under which an engine gives requests away (the paper's value is tuned by run: this one is ours)."""
    in_above: float = 60.0
    """Freeness over which an engine takes them (ours)."""

    name: ClassVar[str] = "llumnix"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """Scores: minus freeness, after this request."""
        freeness = self._freeness(fleet, request.input_tokens)
        return choose(request, fleet, -freeness, lambda i: f"freeness {freeness[i]:.0f} tokens per request")

    def rectify(self, fleet: FleetView, now_ms: float) -> Rectification:
        """Pairs the least free engines with the freest ones: one request each, the one with the least KV."""
        live = fleet.residents
        if live is None:
            return Rectification((), _NOBODY)
        freeness = self._freeness(fleet, 0.0)
        order = np.argsort(freeness, kind="stable")
        sources = [int(e) for e in order if freeness[e] < self.out_below and live.count[e]]
        targets = [int(e) for e in order[::-1] if freeness[e] > self.in_above and fleet.usable[e]]
        moves = []
        for source, target in zip(sources, targets, strict=False):
            if source == target or fleet.models[source] != fleet.models[target]:
                continue
            rows = live.by_engine[source, : live.count[source]]
            row = int(rows[(live.prompt_tokens[rows] + live.generated[rows]).argmin()])
            gain = float(freeness[target] - freeness[source])
            reason = f"freeness {freeness[source]:.0f} here, {freeness[target]:.0f} there"
            moves.append(Move(int(live.key[row]), source, target, gain, -1.0, -1.0, reason))
        return Rectification(tuple(moves), _NOBODY)

    def _freeness(self, fleet: FleetView, more_tokens: float) -> Floats:
        usage = (
            fleet.kv_used_tokens + fleet.queued_prefill_tokens + fleet.pending_prefill_tokens + more_tokens
        )
        freeness = (fleet.kv_capacity_tokens - usage) / np.maximum(fleet.live_requests, 1.0)
        return np.asarray(freeness * fleet.speed if self.weighted else freeness)
