"""Placement policies by name."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from paceline_core.placement.least_predicted import LeastPredicted
from paceline_core.placement.least_request import LeastRequest
from paceline_core.placement.policy import PlacementPolicy
from paceline_core.placement.round_robin import RoundRobin

POLICIES: Final[Mapping[str, Callable[..., PlacementPolicy]]] = {
    RoundRobin.name: RoundRobin,
    LeastRequest.name: LeastRequest,
    LeastPredicted.name: LeastPredicted,
}


def make_policy(name: str, params: Mapping[str, Any] | None = None) -> PlacementPolicy:
    """A new policy. Raises ValueError on an unknown name or parameter; the message lists what is known."""
    factory = POLICIES.get(name)
    if factory is None:
        raise ValueError(f"unknown placement policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    try:
        return factory(**(params or {}))
    except TypeError as error:
        raise ValueError(f"placement policy {name!r}: {error}") from error
