"""What a run of the fault benchmark does: how many requests, which faults, where. All of it follows from a seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class FaultBenchError(RuntimeError):
    """The run cannot be judged: a part did not come back, or the line did not serve at all."""


class Fault(StrEnum):
    """What is done to the line."""

    EXECUTOR = "kill executor"
    SCHEDULER = "kill scheduler"
    ROUTER = "kill router"
    PREDICTOR = "kill predictor"
    ROUTER_AND_EXECUTOR = "kill router and executor"  # both at once: only `sync` promises to survive it
    CUT = "cut client sessions"
    FREEZE_SCHEDULER = "freeze scheduler"
    FREEZE_EXECUTOR = "freeze executor"
    STORE_RESTART = "restart store"
    STORE_OUTAGE = "take store down"


WEIGHTS = {
    Fault.EXECUTOR: 30,
    Fault.SCHEDULER: 20,
    Fault.ROUTER: 20,
    Fault.CUT: 15,
    Fault.PREDICTOR: 5,
    Fault.FREEZE_SCHEDULER: 5,
    Fault.FREEZE_EXECUTOR: 5,
}
"""How often each is drawn, in percent. Those of the store come once in each mode; the pair, with `sync`, for every
fourth kill of a router."""

MODES = ("async", "sync")
"""The durability modes that promise something, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """A run. Half of the requests in each durability mode, one mode after the other."""

    requests: int = 10_000
    seed: int = 1
    at_once: int = 32
    """Requests under way at the same time."""
    sessions: int = 4
    """Client sessions that share them."""
    fault_every: int = 40
    """One fault for so many requests."""
    faults: Mapping[str, tuple[Fault, ...]] = field(default_factory=dict)
    """For a mode: these, evenly spread, instead of drawn ones."""
    prompts: int = 128
    """Different requests; each also runs undisturbed."""
    output_tokens: tuple[int, int] = (16, 128)
    """Output limits are drawn from here."""
    held: int = 3
    """Clients that do not read on before a fault has happened: so every fault meets streams that are under way."""
    outage_s: float = 30.0
    """How long the store stays away when it is taken down."""
    freeze_s: float = 7.0
    """How long a frozen process stands still: past the router's heartbeat limit of 5 s."""
    patience_s: float = 300.0
    """Longest wait for a part to be back, for a request to end, and for everything to be let go of."""

    def __post_init__(self) -> None:
        if self.requests < 2 * len(MODES) or self.at_once < 2 * self.held or self.sessions < 1:
            raise ValueError("a run needs some requests, a session, and twice as many at once as are held")
        if self.fault_every < 1 or self.prompts < 1:
            raise ValueError("fault_every and prompts must be 1 or more")

    def share(self, mode: str) -> int:
        """Requests of a mode."""
        first, *others = MODES
        part = self.requests // len(MODES)
        return self.requests - part * len(others) if mode == first else part


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault, due when so many requests of its mode have begun."""

    at_request: int
    fault: Fault


def schedule(plan: FaultPlan, mode: str, *, own_store: bool) -> tuple[Planned, ...]:
    """The faults of a mode in order. `own_store`: the database may be taken down."""
    count = plan.share(mode)
    faults = list(plan.faults.get(mode, ())) or _drawn(plan, mode, count, own_store)
    step = count / (len(faults) + 1)
    return tuple(Planned(round(step * (number + 1)), fault) for number, fault in enumerate(faults))


def _drawn(plan: FaultPlan, mode: str, count: int, own_store: bool) -> list[Fault]:
    rng = random.Random(f"{plan.seed} {mode}")
    drawn: Sequence[Fault] = rng.choices(
        list(WEIGHTS), list(WEIGHTS.values()), k=max(1, count // plan.fault_every)
    )
    faults, routers = [], 0
    for fault in drawn:
        routers += fault is Fault.ROUTER
        both = mode == "sync" and fault is Fault.ROUTER and routers % 4 == 0
        faults.append(Fault.ROUTER_AND_EXECUTOR if both else fault)
    if own_store:
        for fault in (Fault.STORE_RESTART, Fault.STORE_OUTAGE):
            faults.insert(rng.randrange(len(faults) + 1), fault)
    return faults
