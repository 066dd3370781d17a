"""The life of a request as its router sees it: states, and the steps between them that are legal."""

from enum import IntEnum
from typing import Final


class State(IntEnum):
    """Values equal those of `paceline.common.v1.RequestState`."""

    ACCEPTED = 1
    PLACED = 2
    QUEUED = 3
    RUNNING = 4
    PAUSED = 5
    EVICTED = 6
    MIGRATING = 7
    FINISHED = 8
    CANCELLED = 9
    REJECTED = 10
    EXPIRED = 11
    FAILED = 12


ENDS: Final = frozenset({State.FINISHED, State.CANCELLED, State.REJECTED, State.EXPIRED, State.FAILED})

_LIVE_ENDS: Final = ENDS - {State.REJECTED}

NEXT: Final[dict[State, frozenset[State]]] = {
    State.ACCEPTED: ENDS | {State.PLACED},
    State.PLACED: ENDS | {State.QUEUED, State.RUNNING, State.ACCEPTED},
    State.QUEUED: _LIVE_ENDS | {State.RUNNING, State.PAUSED, State.MIGRATING, State.ACCEPTED},
    State.RUNNING: _LIVE_ENDS | {State.PAUSED, State.EVICTED, State.MIGRATING, State.ACCEPTED},
    State.PAUSED: _LIVE_ENDS | {State.RUNNING, State.EVICTED, State.MIGRATING, State.ACCEPTED},
    State.EVICTED: _LIVE_ENDS | {State.RUNNING, State.QUEUED, State.MIGRATING, State.ACCEPTED},
    State.MIGRATING: _LIVE_ENDS | {State.QUEUED, State.RUNNING, State.ACCEPTED},
    **{end: frozenset() for end in ENDS},
}
"""Legal steps. A lost attempt leads back to ACCEPTED: the request waits for an engine again."""


class IllegalTransition(RuntimeError):
    """A step that `NEXT` does not have: a fault in this program."""

    def __init__(self, request_id: str, old: State, new: State) -> None:
        super().__init__(f"request {request_id}: {old.name} -> {new.name}")
