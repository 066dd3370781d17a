"""The seam between a scheduler and its policy."""

from enum import StrEnum
from typing import Protocol

from paceline_core.batch.plan import BatchPlan
from paceline_core.batch.view import BatchView


class EstimateUse(StrEnum):
    """Which length estimates the caller puts into the view of a policy. What a live service can know is PREDICTED."""

    PREDICTED = "predicted"
    """The predictor's, refined while the answer grows."""
    PRIOR = "prior"
    """What the class usually writes, the same for all its requests: an ablation."""
    TRUE = "true"
    """The true lengths: an oracle, in the simulator only."""


class BatchPolicy(Protocol):
    """Chooses which requests of one engine run next.

    `plan` is pure: the same view and time give the same plan, and nothing else happens. It may keep no state that an
    answer depends on. What every policy owes is checked by the conformance suite, over all names in `registry`.
    """

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    @property
    def estimates(self) -> EstimateUse:
        """Whose length estimates it is given."""
        ...

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        """The plan for `view` at `now_ms` (the clock of the view)."""
        ...
