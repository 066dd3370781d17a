"""One move of a live request from engine to engine, as data."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

from paceline.common.v1 import attempt_pb2
from paceline_router.attempt import Attempt

if TYPE_CHECKING:
    from paceline_router.engine import Engine


class Way(IntEnum):
    """How the state of a request gets to another engine. Values equal those of `paceline.router.v1.MoveWay`."""

    KV = 1
    REPLAY_EXACT = 2
    REPLAY_FAST = 3

    @property
    def label(self) -> str:
        """Its name in metrics and events."""
        return self.name.lower()


class Phase(Enum):
    """Where a move stands. Up to LANDING the request runs on as if nothing were; what goes wrong in STOPPING, when its
    engine may have stopped it already, ends in a replay."""

    TICKET = "ticket"
    LANDING = "landing"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"


class MoveFailed(Exception):
    """The move did not happen; its text says why."""


@dataclass(slots=True, eq=False)
class Move:
    """`source` is the attempt that leaves, `landing` the one that takes over, once there is one.

    `known`: output ids that the landing attempt has been given. `expected_ms`: what landing was thought to take.
    `done` ends with the move; a failed one with `MoveFailed`.
    """

    source: Attempt
    target: "Engine"
    way: Way
    reason: str
    gain: float
    started_ms: float
    expected_ms: float
    deadline_ms: float
    phase: Phase = Phase.TICKET
    landing: Attempt | None = None
    submitted_ms: float = 0.0
    ready_ms: float = 0.0
    kv_bytes: int = 0
    prepared: int = 0
    known: int = 0
    done: "asyncio.Future[Move]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    from_index: int = 0
    stopped_ms: float = 0.0

    def pass_on(self, ids: bytearray) -> None:
        """Let the landing attempt know what was written since, while its KV is on the way: the KV has it too."""
        landing = self.landing
        if self.way is not Way.KV or landing is None or landing.accepted:
            return
        landing.engine.link.forced(self._further(ids, final=False))
        if 0 < landing.token_limit <= self.known:
            # As at its submit: without room for one token more it would count as out of credit, and not get ready.
            landing.token_limit = self.known + 1
            landing.engine.link.credit(landing.key, landing.token_limit)

    def hand_over(self, ids: bytearray) -> attempt_pb2.ForcedTokens:
        """The last word to the landing attempt: all output, so that it goes on from there."""
        return self._further(ids, final=True)

    def _further(self, ids: bytearray, *, final: bool) -> attempt_pb2.ForcedTokens:
        assert self.landing is not None
        further = attempt_pb2.ForcedTokens(
            attempt_key=self.landing.key,
            first_index=self.known,
            ids=bytes(ids[4 * self.known :]),
            final=final,
        )
        self.known = len(ids) // 4
        return further
