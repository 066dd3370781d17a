"""How patient the router session is, and what happened on it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long to wait for what, seconds; see the config fields of the same names."""

    router_wait_s: float
    outage_limit_s: float
    adoption_grace_s: float
    reconnect_max_s: float


class SessionCounters:
    """What happened on the session, for metrics and tests."""

    def __init__(self) -> None:
        self.connections = 0
        self.reattaches = 0
        self.gaps = 0
        self.overlaps = 0
        self.cancels = 0
        self.grants = 0
