"""The ledger in memory: live requests, their attempts by key, and ended requests for a while."""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from paceline_router.attempt import Attempt
from paceline_router.request import LiveRequest
from paceline_runtime.errors import PacelineError, Reason

_COUNTER_BITS = 40


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended requests stay, whichever bound is reached first."""

    requests: int
    bytes: int
    seconds: float


class Ledger:
    """Who is live, who ended lately, and which attempt key belongs to whom. `empty` is set while nobody is
    live."""

    def __init__(self, max_live: int, retention: Retention, retry_after_ms: float) -> None:
        self.attempts: dict[int, Attempt] = {}
        self._max_live = max_live
        self._retention = retention
        self._retry_after_ms = retry_after_ms
        self._live: dict[str, LiveRequest] = {}
        self._ended: OrderedDict[str, LiveRequest] = OrderedDict()
        self._ended_bytes = 0
        self._life = random.SystemRandom().getrandbits(64 - _COUNTER_BITS)
        self._counter = 0
        self.empty = asyncio.Event()
        self.empty.set()

    def next_key(self) -> int:
        """A fresh attempt key: 24 random bits of this life, 40 bits of a counter."""
        self._counter += 1
        return (self._life << _COUNTER_BITS) | self._counter

    def own(self, key: int) -> bool:
        """True if the key was drawn in this life."""
        return key >> _COUNTER_BITS == self._life

    @property
    def live_count(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def retained_bytes(self) -> int:
        """Output of ended requests, bytes."""
        return self._ended_bytes

    def live(self) -> Iterator[LiveRequest]:
        """Requests that have not ended; safe against changes while iterating."""
        return iter(list(self._live.values()))

    def all(self) -> Iterator[LiveRequest]:
        """Live and retained requests."""
        return iter([*self._live.values(), *self._ended.values()])

    def find(self, request_id: str) -> LiveRequest | None:
        """A live or retained request."""
        return self._live.get(request_id) or self._ended.get(request_id)

    def add(self, request: LiveRequest) -> None:
        """Take a new request in. Raises DUPLICATE_REQUEST, or QUEUE_FULL with a time to try again."""
        if self.find(request.request_id) is not None:
            raise duplicate(request.request_id)
        if len(self._live) >= self._max_live:
            raise PacelineError(
                Reason.QUEUE_FULL,
                f"the router holds {len(self._live)} live requests, which is its limit; try again later",
                retry_after_ms=self._retry_after_ms,
            )
        self._live[request.request_id] = request
        self.empty.clear()

    def adopt(self, request: LiveRequest) -> None:
        """Take over a request of an earlier life: the bound does not apply to it."""
        self._live[request.request_id] = request
        self.empty.clear()

    def end(self, request: LiveRequest, retain: bool) -> None:
        """The request ended. A refused one is not retained: its id may be used again."""
        self._live.pop(request.request_id, None)
        if not self._live:
            self.empty.set()
        if retain and self._retention.requests:
            self._ended[request.request_id] = request
            self._ended_bytes += request.output.size_bytes

    def expire(self, now_ms: float) -> None:
        """Forget ended requests over the bounds, oldest first."""
        oldest_ms = now_ms - self._retention.seconds * 1000
        while self._ended:
            request = next(iter(self._ended.values()))
            over = len(self._ended) > self._retention.requests or self._ended_bytes > self._retention.bytes
            if not over and request.ended_ms > oldest_ms:
                return
            self._ended.popitem(last=False)
            self._ended_bytes -= request.output.size_bytes


def duplicate(request_id: str) -> PacelineError:
    """The refusal of an id that is taken."""
    return PacelineError(
        Reason.DUPLICATE_REQUEST,
        f"a request with id {request_id!r} exists already; attach to it, or choose another id",
    )
