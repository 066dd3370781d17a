"""The seam: a placement policy answers which engine a request goes to, from data alone."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from paceline_core.placement.view import Bools, FleetView, Floats, RequestView

NONE: Final = -1


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision.

    `engine` indexes the fleet view; NONE: no engine may take the request. `scores` is float64[E], lower is
    better, NaN where the engine was left out; `excluded` says why, "" where it was not. `predicted_ms` is the
    predicted time from now to the last token on the chosen engine, and `p_meet` the probability to meet the
    objective there; negative: the policy does not say.
    """

    engine: int
    scores: Floats
    excluded: tuple[str, ...]
    reason: str
    predicted_ms: float = -1.0
    p_meet: float = -1.0

    @property
    def found(self) -> bool:
        """True if an engine was chosen."""
        return self.engine != NONE


class PlacementPolicy(Protocol):
    """Chooses an engine. No I/O, no clock, no randomness: equal calls in equal order give equal answers.

    A policy may count its own calls (round robin), and nothing else may change it.
    """

    @property
    def name(self) -> str:
        """Its name in the registry."""
        ...

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The engine for `request`. `now_ms` is the caller's monotonic clock."""
        ...


def eligible(request: RequestView, fleet: FleetView) -> tuple[Bools, tuple[str, ...]]:
    """Engines that may take the request, bool[E], and why the others may not ("" for those that may)."""
    reasons = tuple(_exclusion(request, fleet, i) for i in range(len(fleet)))
    return np.array([not reason for reason in reasons], dtype=np.bool_), reasons


def _exclusion(request: RequestView, fleet: FleetView, i: int) -> str:
    if not fleet.up[i]:
        return "down"
    if request.model and fleet.models[i] != request.model:
        return f"serves {fleet.models[i]}"
    if fleet.draining[i]:
        return "draining"
    if fleet.stale[i]:
        return "stale"
    if fleet.incarnations[i] in request.excluded or fleet.engine_ids[i] in request.excluded_ids:
        return "excluded"
    if 0 < fleet.max_context_tokens[i] < request.prompt_tokens / CONTEXT_TOLERANCE:
        return "context too short"
    return ""


CONTEXT_TOLERANCE: Final = 2.0
"""Prompt tokens are an estimate: an engine is left out only when the estimate is past its context by this
factor. The engine itself refuses what really does not fit."""


def nothing_eligible(fleet: FleetView, reasons: tuple[str, ...]) -> Placement:
    """The answer when no engine may take the request."""
    why = "; ".join(
        f"{engine}: {reason}" for engine, reason in zip(fleet.engine_ids[:8], reasons[:8], strict=True)
    )
    return Placement(
        NONE, np.full(len(fleet), np.nan), reasons, f"no engine may take it ({why or 'the fleet is empty'})"
    )


def lowest(scores: Floats, may: Bools) -> tuple[int, Floats]:
    """Index of the lowest score among engines that may (the first of equals), and the scores with NaN
    elsewhere."""
    shown = np.where(may, scores, np.nan)
    return int(np.nanargmin(shown)), shown
