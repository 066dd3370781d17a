"""Tickets for KV state."""

import secrets
from collections import OrderedDict
from collections.abc import Callable

from paceline_executor.contract import EngineError


class TicketBook:
    """Unguessable, short-lived, single-use tickets; a bounded number of them."""

    def __init__(self, capacity: int, ttl_s: float, clock_s: Callable[[], float]) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._clock_s = clock_s
        self._open: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        self._expire()
        return len(self._open)

    def issue(self, attempt_key: int) -> str:
        """A new ticket; raises `EngineError` TOO_MANY_TICKETS at the bound."""
        self._expire()
        if len(self._open) >= self._capacity:
            raise EngineError(
                "TOO_MANY_TICKETS", f"{self._capacity} tickets are open already", retryable=True
            )
        token = secrets.token_urlsafe(24)
        self._open[token] = (attempt_key, self._clock_s() + self._ttl_s)
        return token

    def redeem(self, token: str) -> int:
        """The attempt of a ticket, which is used up; raises `EngineError` TICKET_INVALID."""
        self._expire()
        entry = self._open.pop(token, None)
        if entry is None:
            raise EngineError("TICKET_INVALID", "the ticket is unknown, used or expired")
        return entry[0]

    def _expire(self) -> None:
        now = self._clock_s()
        while self._open and next(iter(self._open.values()))[1] <= now:
            self._open.popitem(last=False)
