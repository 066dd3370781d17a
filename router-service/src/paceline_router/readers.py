"""Who reads what: attaching to requests, leaving them, and what happens when nobody comes back."""

import asyncio
import logging
from typing import Protocol

from paceline.router.v1 import generation_pb2
from paceline_router.adoption import Adoption
from paceline_router.clock import Clock
from paceline_router.dispatch import Dispatcher
from paceline_router.ledger import Ledger
from paceline_router.lifecycle import Lifecycle
from paceline_router.outlet import Outbox, Outlet
from paceline_router.request import LiveRequest
from paceline_router.restore import restored
from paceline_runtime.errors import PacelineError, Reason, invalid
from paceline_store.rows import StoredRequest

log = logging.getLogger(__name__)

MAX_READERS = 16
_STORE_LOOKUP_S = 5.0


class FinishedStore(Protocol):
    """The part of the store that has requests of long ago."""

    async def get_request(self, request_id: str) -> StoredRequest | None: ...


class Readers:
    """Attaches outlets to requests. Requests that nobody reads are cancelled after the detach time."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        adoption: Adoption,
        store: FinishedStore | None,
        clock: Clock,
        *,
        detach_ttl_s: float,
        coalesce_ms: float,
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._adoption = adoption
        self._store = store
        self._clock = clock
        self._detach_ttl_ms = detach_ttl_s * 1000
        self._coalesce_s = coalesce_ms / 1000
        self._detached: dict[LiveRequest, None] = {}
        self._outboxes: set[Outbox] = set()
        self._leaving = False

    def outbox(self) -> Outbox:
        """A new client stream; `close` it at its end."""
        outbox = Outbox(self._coalesce_s, self._taken)
        self._outboxes.add(outbox)
        if self._leaving:
            outbox.leave()
        return outbox

    def close(self, outbox: Outbox) -> None:
        """A client stream is over."""
        self._outboxes.discard(outbox)
        outbox.close()

    def send_away(self) -> None:
        """The router is going: end all client streams. Their requests live on, for the next life to adopt."""
        self._leaving = True
        for outbox in self._outboxes:
            outbox.leave()

    def attach(
        self, request: LiveRequest, outbox: Outbox, stream_id: int, from_index: int, token_limit: int
    ) -> Outlet:
        """A reader of `request` from `from_index` on. Raises FAILED_PRECONDITION with too many readers."""
        if len(request.outlets) >= MAX_READERS:
            raise PacelineError(
                Reason.FAILED_PRECONDITION, f"{MAX_READERS} streams read this request already"
            )
        outlet = Outlet(request, outbox, stream_id, from_index, token_limit)
        request.outlets.append(outlet)
        request.detached_ms = None
        self._detached.pop(request, None)
        self._dispatcher.grant(request, force=True)
        outlet.notify(urgent=True)
        return outlet

    def detach(self, outlet: Outlet) -> None:
        """A reader is gone; with the last one the request is on its own."""
        request = outlet.request
        if outlet in request.outlets:
            request.outlets.remove(outlet)
        if request.outlets or request.ended or self._leaving:
            return
        if request.spec.on_disconnect == generation_pb2.ON_DISCONNECT_CANCEL:
            self._lifecycle.cancel(request, "the client left")
        else:
            request.note(self._clock.now_ms(), "detached")
            self.leave(request)

    def leave(self, request: LiveRequest) -> None:
        """Nobody reads it: it waits for an Attach."""
        request.detached_ms = self._clock.now_ms()
        self._detached[request] = None

    def expire(self) -> None:
        """Cancel requests whose client did not come back in time."""
        oldest_ms = self._clock.now_ms() - self._detach_ttl_ms
        for request in list(self._detached):
            if request.ended or request.detached_ms is None:
                del self._detached[request]
            elif request.detached_ms <= oldest_ms:
                del self._detached[request]
                self._lifecycle.cancel(request, "the client did not come back")

    async def find(self, request_id: str, tenant: str, from_index: int = 0) -> LiveRequest:
        """A request to attach to: live, ended lately, being adopted, or from the store. Raises NOT_FOUND."""
        request = await self._adoption.find(request_id) or await self._from_store(request_id)
        if request is None or (tenant and request.tenant != tenant):
            raise not_found(request_id)
        if request.ended and from_index > request.output.count:
            message = (
                f"the request ended with {request.output.count} tokens; from_index {from_index} is past them"
            )
            raise invalid(message, field="from_index")
        return request

    async def _from_store(self, request_id: str) -> LiveRequest | None:
        if self._store is None:
            return None
        try:
            async with asyncio.timeout(_STORE_LOOKUP_S):
                stored = await self._store.get_request(request_id)
        except (PacelineError, TimeoutError) as error:
            raise PacelineError(
                Reason.STORE_UNAVAILABLE, "the request is not live, and the store is down"
            ) from error
        if stored is None or stored.request.finished is None:
            return None
        return restored(stored)

    def _taken(self, outlet: Outlet) -> None:
        self._dispatcher.grant(outlet.request)


def leaving() -> PacelineError:
    """What clients of a router that is going are told."""
    return PacelineError(Reason.DRAINING, "this router is going; attach to the request again in a moment")


def not_found(request_id: str) -> PacelineError:
    """The answer for an id that is not known, or not the caller's to know."""
    return PacelineError(Reason.NOT_FOUND, f"no request {request_id!r} is known")
