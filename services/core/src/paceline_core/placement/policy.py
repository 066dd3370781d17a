"""The seam: a placement policy answers which engine a request goes to, from data alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, overload

import numpy as np

from paceline_core.batch.policy import EstimateUse
from paceline_core.placement.view import Bools, FleetView, Floats, RequestView

__all__ = ["NONE", "EstimateUse", "Exclusions", "Placement", "PlacementPolicy", "choose", "eligible"]

NONE: Final = -1
CONTEXT_TOLERANCE: Final = 2.0
"""Prompt tokens are an estimate: an engine is left out only when the estimate is past its context by this
factor. The engine itself refuses what really does not fit."""


class Exclusions(Sequence[str]):
    """Why each engine was left out, "" where it was not. Worked out when read: read it before the fleet changes."""

    def __init__(self, request: RequestView, fleet: FleetView) -> None:
        self._request = request
        self._fleet = fleet

    def __len__(self) -> int:
        return len(self._fleet)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return _exclusion(self._request, self._fleet, i)


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision.

    `engine` indexes the fleet view; NONE: no engine may take the request. `scores` is float64[E], lower is
    better, NaN where the engine was left out and infinite where the policy did not look; `excluded` says why it was
    left out. `predicted_ms` is the predicted time from now to the last token on the chosen engine, and `p_meet` the
    probability to meet the objective there; negative: the policy does not say.
    """

    engine: int
    scores: Floats
    excluded: Sequence[str]
    reason: str
    predicted_ms: float = -1.0
    p_meet: float = -1.0

    @property
    def found(self) -> bool:
        """True if an engine was chosen."""
        return self.engine != NONE


class PlacementPolicy(Protocol):
    """Chooses an engine. No I/O, no clock, no randomness but what the request's id gives: equal calls in equal order
    give equal answers.

    A policy may count its own calls (round robin), and nothing else may change it.
    """

    @property
    def name(self) -> str:
        """Its name in the registry."""
        ...

    @property
    def estimates(self) -> EstimateUse:
        """Whose length estimates it is given."""
        ...

    def place(self, request: RequestView, fleet: FleetView, now_ms: float) -> Placement:
        """The engine for `request`. `now_ms` is the caller's monotonic clock."""
        ...


def eligible(request: RequestView, fleet: FleetView) -> tuple[Bools, Exclusions]:
    """Engines that may take the request, bool[E], and why the others may not."""
    may = fleet.usable & fleet.roster.serving(request.model)
    if request.excluded or request.excluded_ids:
        for incarnation in request.excluded:
            row = fleet.roster.row_of_incarnation.get(incarnation)
            if row is not None:
                may[row] = False
        for engine_id in request.excluded_ids:
            row = fleet.roster.row_of_id.get(engine_id)
            if row is not None:
                may[row] = False
    least = request.prompt_tokens / CONTEXT_TOLERANCE
    if (short := fleet.max_context_tokens < least).any():
        may &= ~(short & (fleet.max_context_tokens > 0))
    return may, Exclusions(request, fleet)


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


def choose(request: RequestView, fleet: FleetView, scores: Floats, reason: Callable[[int], str]) -> Placement:
    """The eligible engine of the lowest score (the first of equals); `reason` is asked about that one."""
    may, excluded = eligible(request, fleet)
    shown = np.where(may, scores, np.nan)
    engine = best_of(scores, may)
    if engine == NONE:
        return nothing_eligible(fleet, excluded)
    return Placement(engine, shown, excluded, reason(engine))


def best_of(scores: Floats, may: Bools) -> int:
    """Row of the lowest score among those that may, the first of equals; NONE when none may."""
    if not len(may):
        return NONE
    engine = int(np.where(may, scores, np.inf).argmin())
    return engine if may[engine] else _first(may)


def _first(may: Bools) -> int:
    """The first that may: asked when every score is infinite."""
    engine = int(may.argmax())
    return engine if may[engine] else NONE


def nothing_eligible(fleet: FleetView, excluded: Sequence[str]) -> Placement:
    """The answer when no engine may take the request."""
    why = "; ".join(
        f"{engine}: {reason}" for engine, reason in zip(fleet.engine_ids[:8], excluded[:8], strict=True)
    )
    return Placement(
        NONE, np.full(len(fleet), np.nan), excluded, f"no engine may take it ({why or 'the fleet is empty'})"
    )
