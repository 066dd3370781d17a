"""Readers: an outlet is one client's reading of one request; an outbox gathers the outlets of one client
stream.

There is no queue of tokens: an outlet is an index into the request's own output, so a slow reader holds
nothing but its place, and many tokens become one message by themselves.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from paceline_router.request import LiveRequest

MAX_MESSAGE_BYTES: Final = 512 * 1024
"""Text and ids of one message to a client, about."""
MAX_ROW_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one outlet, packed."""

    outlet: "Outlet"
    first: int
    count: int
    ids: bytes
    lengths: bytes
    text: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a client stream sends next, in this order: acceptances, tokens, ends."""

    accepted: list["Outlet"]
    rows: list[Row]
    finished: list["Outlet"]

    def __bool__(self) -> bool:
        return bool(self.accepted or self.rows or self.finished)


class Outlet:
    """One client's reading of one request, from `sent` on. `limit`: the client's credit, 0 for no bound."""

    __slots__ = ("accepted_sent", "dirty", "limit", "outbox", "request", "sent", "sent_text", "stream_id")

    def __init__(self, request: LiveRequest, outbox: "Outbox", stream_id: int, sent: int, limit: int) -> None:
        self.request = request
        self.outbox = outbox
        self.stream_id = stream_id
        self.sent = sent
        self.sent_text = -1
        self.limit = limit
        self.accepted_sent = False
        self.dirty = False

    def notify(self, urgent: bool = False) -> None:
        """There is something new. Tokens after the first may wait for company, the rest goes at once."""
        if not self.dirty or urgent:
            self.outbox.mark(self, urgent)

    @property
    def sendable(self) -> int:
        """Tokens that may be sent now."""
        released = self.request.released
        bound = min(released, self.limit) if self.limit else released
        return max(0, bound - self.sent)

    @property
    def finishable(self) -> bool:
        """True when all that is left to send is the end."""
        return self.request.end_released and self.sent >= self.request.released


class Outbox:
    """The outlets of one client stream, and which of them have something to say.

    `sent(outlet)` is called after tokens of an outlet were taken, so that its request's credit can grow.
    """

    def __init__(self, coalesce_s: float, sent: Callable[[Outlet], None]) -> None:
        self._coalesce_s = coalesce_s
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._dirty: list[Outlet] = []
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.leaving = False

    def mark(self, outlet: Outlet, urgent: bool) -> None:
        """`outlet` has something to say."""
        if not outlet.dirty:
            outlet.dirty = True
            self._dirty.append(outlet)
        if urgent:
            self._wake.set()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._coalesce_s, self._ring)

    def wake(self) -> None:
        """Have `wait` return, e.g. because the stream's end changed."""
        self._wake.set()

    def leave(self) -> None:
        """The router is going: the stream is to end, and its client to attach to the next life."""
        self.leaving = True
        self._wake.set()

    async def wait(self) -> None:
        """Return when there is something to take."""
        await self._wake.wait()

    def take(self) -> Delivery:
        """What to send next, bounded in size; what does not fit stays for the next time."""
        self._wake.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delivery = Delivery([], [], [])
        size, dirty, self._dirty = 0, self._dirty, []
        for place, outlet in enumerate(dirty):
            if size >= MAX_MESSAGE_BYTES:
                self._dirty = dirty[place:] + self._dirty
                self._wake.set()
                break
            outlet.dirty = False
            size += self._take_outlet(outlet, delivery)
        return delivery

    def close(self) -> None:
        """Stop the timer; nothing is sent any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._dirty.clear()

    def _ring(self) -> None:
        self._timer = None
        self._wake.set()

    def _take_outlet(self, outlet: Outlet, delivery: Delivery) -> int:
        request = outlet.request
        if not outlet.accepted_sent and request.accepted is not None:
            outlet.accepted_sent = True
            delivery.accepted.append(outlet)
        size = 0
        ready = outlet.sendable
        if ready and outlet.accepted_sent:
            count = min(ready, MAX_ROW_TOKENS)
            first, last = outlet.sent, outlet.sent + count
            if outlet.sent_text < 0:
                outlet.sent_text = request.output.text_offset(first)
            ids, lengths, text = request.output.span(first, last, outlet.sent_text)
            delivery.rows.append(Row(outlet, first, count, ids, lengths, text))
            outlet.sent = last
            outlet.sent_text += len(text)
            size = len(text) + 2 * len(ids)
            if count < ready:
                self.mark(outlet, urgent=True)
            self._sent(outlet)
        if outlet.finishable and not outlet.dirty:
            delivery.finished.append(outlet)
        return size
