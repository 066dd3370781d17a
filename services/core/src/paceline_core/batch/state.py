"""Where a live request stands on its engine."""

from enum import IntEnum


class RunState(IntEnum):
    """Values equal those of `paceline.common.v1.RequestState`."""

    QUEUED = 3
    RUNNING = 4
    PAUSED = 5
    EVICTED = 6
    FINISHED = 8
    CANCELLED = 9
    REJECTED = 10
    EXPIRED = 11
    FAILED = 12
