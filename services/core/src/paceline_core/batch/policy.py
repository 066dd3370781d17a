"""The seam between a scheduler and its policy."""

from typing import Protocol

from paceline_core.batch.plan import BatchPlan
from paceline_core.batch.view import BatchView


class BatchPolicy(Protocol):
    """Chooses which requests of one engine run next.

    `plan` is pure: the same view and time give the same plan, and nothing else happens. It may keep no state that an
    answer depends on. What every policy owes is checked by the conformance suite, over all names in `registry`.
    """

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        """The plan for `view` at `now_ms` (the clock of the view)."""
        ...
