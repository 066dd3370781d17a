"""What the matcher learned: scales, weights of strangers, and what is expected when nothing matches."""

from dataclasses import asdict, dataclass, fields
from typing import Final

from paceline_core.tasks.pattern import A

SHARES: Final = 12
"""Stages that a forecast tells apart; the last one holds all that come later."""
NEAREST: Final = 64
"""Patterns that a forecast is made of."""
GRID_STEP: Final = 0.25
GRID_POINTS: Final = 65
"""Points of log(1 + tokens), 0 .. 16, between which quantiles are interpolated."""
MIN_REST: Final = 0.25
"""A running stage is expected to write at least this share of what its pattern wrote."""
CARRY_AFTER_STAGES: Final = 4.0
"""Ended stages at which half of `scale_carry` counts: the ratio of one short stage is mostly noise."""
MAX_SHIFT: Final = 2.0
"""Most that `scale_carry` moves a pattern, in log."""


@dataclass(frozen=True, slots=True)
class MatcherParams:
    """Learned by `paceline train tasks`. Distances are squared differences of log attributes, summed with weights."""

    weights: tuple[float, ...] = (0.5,) * A
    """Weight of each numeric attribute: 1 / scale^2 in log units."""
    actor_weight: float = 1.0
    """Weight of the squared distance of actors (4 at most)."""
    recency: float = 1.0
    """Weight of a position relative to the one after it."""
    growth: float = 0.5
    """The mean distance a position is multiplied by (positions seen)^growth."""
    unlikeness: float = 0.3
    """Share of the least distance of its group (own application, others) that counts against a pattern: a task that is
    unlike all of its application is still more one of its application than of another."""
    other_app_cost: float = 0.0
    """Negative log of how many tasks of the application all others together are worth."""
    background_cost: float = 2.0
    """The same for the background."""
    spread: float = 0.5
    """Standard deviation, in log, of what remains around a pattern of the same application."""
    other_spread: float = 1.0
    """The same for others."""
    scale_carry: float = 0.3
    """Share of a task's log ratio to a pattern so far that goes on."""
    background_log: tuple[float, float, float] = (6.0, 0.2, 0.2)
    """log(1 + critical tokens to come) = a + b * log(1 + critical tokens so far) + c * log(1 + stages seen)."""
    background_spread: float = 1.5
    """Standard deviation of that."""
    background_fanout_log: float = 0.3
    """log of all tokens to come over those on the critical path."""
    background_stages: tuple[float, float] = (1.0, 0.5)
    """log of stages to come = a + b * log(1 + stages seen)."""
    background_end: float = 0.15
    """Probability that the stages seen are all."""

    def __post_init__(self) -> None:
        if len(self.weights) != A:
            raise ValueError(f"{A} weights, got {len(self.weights)}")

    def as_json(self) -> dict[str, object]:
        """As written into the model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, object]) -> "MatcherParams":
        """The reverse; unknown names are errors (TypeError)."""
        names = {field.name for field in fields(cls)}
        if unknown := set(values) - names:
            raise TypeError(f"unknown parameters: {sorted(unknown)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]
