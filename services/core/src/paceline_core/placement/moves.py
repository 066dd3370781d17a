"""Moves as data: which live request should go where, and why. The router carries them out, or does not."""

from dataclasses import dataclass
from typing import Protocol

from paceline_core.placement.residents import Ints
from paceline_core.placement.view import FleetView


@dataclass(frozen=True, slots=True)
class Move:
    """One request from one engine to another. Engines are rows of the fleet view."""

    key: int
    """Attempt key."""
    source: int
    target: int
    gain: float
    """Expected value won: in P(meet), its own and that of residents on both sides, less what the move costs."""
    p_stay: float
    p_move: float
    reason: str


@dataclass(frozen=True, slots=True)
class Rectification:
    """What `rectify` found. `checked`: rows of the residents that were looked at; the caller notes that, with
    `ResidentTable.checked`, before it asks again."""

    moves: tuple[Move, ...]
    checked: Ints


class Rectifier(Protocol):
    """A placement policy that also looks at requests under way. Pure, as `place` is."""

    def rectify(self, fleet: FleetView, now_ms: float) -> Rectification:
        """Moves that pay, best first. Without residents in the view: none."""
        ...
