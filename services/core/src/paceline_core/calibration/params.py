"""What the online learner can be told about how to learn."""

from dataclasses import dataclass, field

from paceline_core.histogram import HistogramParams

BUCKETS = (0, 50, 200, 800)
"""Output tokens from which each progress bucket begins."""

LengthKey = tuple[str, str]
"""(model, app)."""


@dataclass(frozen=True, slots=True)
class CalibrationParams:
    """How it learns. Half-lives and concentrations are in outcomes; tuples are per level: fleet, model, app."""

    histogram: HistogramParams = field(default_factory=HistogramParams)
    """The running histogram; `max_models` and `max_keys` bound everything that is kept."""
    offset_half_life: float = 200.0
    """Of log residuals and of their spread."""
    offset_concentration: tuple[float, float, float] = (10.0, 1.0, 4.0)
    """What the level above is worth for the offset; low for a model, which may be unlike any other."""
    offset_strongest: float = 40.0
    """What a shipped offset is worth at most."""
    spread_concentration: tuple[float, float, float] = (30.0, 15.0, 15.0)
    mixture_half_life: float = 100.0
    mixture_concentration: tuple[float, float, float] = (20.0, 20.0, 20.0)
    base_share: float = 0.9
    """Share of the base in the mixture before anything was learned."""
    pit_half_life: float = 200.0
    pit_concentration: tuple[float, float, float] = (10.0, 10.0, 10.0)
    conformal_outcomes: float = 0.4
    """What is added above all outcomes of a key: of few, the largest is not yet the largest to come."""
    settling_outcomes: float = 6.0
    """Outcomes after which the offset of a new model is taken to be half found."""
    steering_gain: float = 0.003
    """How much an outcome moves the steered levels, at each level of keys."""
    max_worlds: int = 1
    """Fleets that learn apart from each other, for evaluation over many orders at once."""
