"""A call and its job while they are simulated."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from paceline_core.slo import Slo
from paceline_core.tracker import Outcome
from paceline_lab.workloads.trace import Call, Job

_MOVES_SHIFT: Final = 40


class Ending(StrEnum):
    """How a call came to its end."""

    DONE = "done"
    SHED = "shed"
    """Given up by the policy."""
    CANCELLED = "cancelled"
    """Its task was dead."""
    TOO_LONG = "too_long"
    """No engine could hold it."""


@dataclass(slots=True)
class SimCall:
    """A live call: an occupant of the live table."""

    key: int
    """Place of the call in the whole workload, over all jobs."""
    job: "SimJob"
    place: int
    """Among the calls of its job."""
    call: Call
    slo: Slo
    row: int = -1
    router_id: str = ""
    released_ms: float = 0.0
    engine: int = -1
    refined: int = 0
    """Refinements of its length estimate so far."""
    told: int = 0
    """Refinements that the placement policy knows of."""
    preemptions: int = 0
    recomputed_tokens: int = 0
    """Tokens whose KV was dropped and had to be computed again."""
    ending: Ending | None = None
    outcome: Outcome | None = None
    """How it stood, times since its release; None: it never came to an engine, or has not ended."""
    p_meet: float = -1.0
    """Probability to be in time that the placement policy gave when it was placed; negative: it did not say."""
    moves: int = 0
    """Moves of it that were begun."""
    landing: "SimCall | None" = None
    """The same call on the engine that it is being moved to."""
    origin: "SimCall | None" = None
    """Of a landing that is under way: the same call on the engine that it is being moved from."""
    moved: bool = False
    """It went on elsewhere: what becomes of it here counts for nothing."""

    @property
    def attempt(self) -> int:
        """Key of this stay on this engine."""
        return self.key | self.moves << _MOVES_SHIFT

    @property
    def tenant(self) -> str:
        """For fairness."""
        return self.job.job.tenant


@dataclass(slots=True)
class SimJob:
    """A job under way."""

    job: Job
    first_key: int
    """Key of its first call."""
    calls: dict[int, SimCall] = field(default_factory=dict)
    """Released calls by place."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Parents that have not ended, by place, of calls that are not released."""
    left: int = 0
    """Calls that have not ended well."""
    dead: bool = False
    """A call of it was given up: nothing more is released."""
    last_ms: float = float("nan")
    """End of its last call, an instant."""

    @property
    def completed(self) -> bool:
        """True once every call ended well."""
        return self.left == 0
