"""The requests: a fixed set of prompts and sampling settings, and how each client behaves."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from paceline.common.v1 import slo_pb2
from paceline.router.v1 import generation_pb2
from paceline_lab.bench.faults.plan import FaultPlan
from paceline_lab.bench.faults.verdict import Answer, Received

_WORDS = (
    "river",
    "stone",
    "lamp",
    "seven",
    "under",
    "glass",
    "north",
    "paper",
    "wheel",
    "amber",
    "quiet",
    "field",
)
_WAIT_MS = 600_000.0
_DURABILITY = {"async": generation_pb2.DURABILITY_ASYNC, "sync": generation_pb2.DURABILITY_SYNC}


class Behaviour(StrEnum):
    """How a client reads."""

    PLAIN = "plain"
    SLOW = "slow"  # grants a few tokens at a time, with pauses
    CANCEL = "cancel"  # cancels in the middle
    HELD = "held"  # grants nothing more before a fault has happened


_SHARES = {Behaviour.PLAIN: 60, Behaviour.SLOW: 25, Behaviour.CANCEL: 15}


@dataclass(slots=True, eq=False)
class Call:
    """One request and what its client has seen of it."""

    spec: generation_pb2.GenerationSpec
    durability: str
    behaviour: Behaviour
    stop_at: int
    """Tokens after which it is cancelled or held."""
    answer: Answer | None
    """What it gets when nothing happens; None while that is being found out."""
    token_limit: int = 0
    received: Received = field(default_factory=Received)
    sent: bool = False
    """The router may know it: from now on it is attached to."""
    accepted: bool = False
    cancelled: bool = False
    attaches: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    finished: generation_pb2.Finished | None = None
    problem: str = ""
    """Why it ended without the router's word."""
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def request_id(self) -> str:
        """Its id, chosen by the client."""
        return self.spec.request_id

    @property
    def count(self) -> int:
        """Tokens so far."""
        return len(self.received.ids)

    @property
    def waits(self) -> bool:
        """True while it has what it granted, and grants nothing more."""
        return (
            self.behaviour is Behaviour.HELD and not self.done.is_set() and self.count >= self.token_limit > 0
        )


def specs(plan: FaultPlan) -> list[generation_pb2.GenerationSpec]:
    """The different requests: greedy and seeded ones, of different lengths."""
    rng = random.Random(f"{plan.seed} prompts")
    made = []
    for number in range(plan.prompts):
        words = " ".join(rng.choices(_WORDS, k=rng.randrange(4, 60)))
        spec = generation_pb2.GenerationSpec(
            text=f"Request {number}: {words}.",
            max_tokens=rng.randint(*plan.output_tokens),
            streaming=True,
            slo=slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo()),
            max_wait_ms=_WAIT_MS,
            on_disconnect=generation_pb2.ON_DISCONNECT_DETACH,
        )
        spec.sampling.ignore_eos = number % 4 != 0
        if number % 2:
            spec.sampling.temperature = 0.8
            spec.sampling.seed = rng.getrandbits(32)
        made.append(spec)
    return made


def undisturbed_call(spec: generation_pb2.GenerationSpec, name: str) -> Call:
    """A call that finds out an answer."""
    return Call(_named(spec, name, "async"), "async", Behaviour.PLAIN, 0, None)


def make_call(
    spec: generation_pb2.GenerationSpec, answer: Answer, mode: str, name: str, *, held: bool
) -> Call:
    """A call of the run; its behaviour follows from its name, unless it is held."""
    rng = random.Random(name)
    behaviour = Behaviour.HELD if held else rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    middle = rng.randrange(1, max(2, len(answer.ids) - 1))
    if behaviour is Behaviour.CANCEL and len(answer.ids) < 4:
        behaviour = Behaviour.PLAIN
    limit = {Behaviour.HELD: middle, Behaviour.SLOW: 4}.get(behaviour, 0)
    return Call(_named(spec, name, mode), mode, behaviour, middle, answer, token_limit=limit)


def _named(spec: generation_pb2.GenerationSpec, name: str, mode: str) -> generation_pb2.GenerationSpec:
    named = generation_pb2.GenerationSpec()
    named.CopyFrom(spec)
    named.request_id = name
    named.durability = _DURABILITY[mode]
    return named
