"""Questions about requests: one, many, and why."""

import asyncio
import base64
import binascii
import logging
import math
from typing import Final, Protocol

import grpc

from paceline.router.v1 import router_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_router.adoption import Adoption
from paceline_router.clock import Clock
from paceline_router.ledger import Ledger
from paceline_router.readers import not_found
from paceline_router.records import live_record, stored_record
from paceline_router.request import LiveRequest
from paceline_runtime.errors import PacelineError, Reason, invalid
from paceline_store.rows import ListedRequest, StoredRequest

log = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_EVENTS: Final = 64
_STORE_S: Final = 5.0
_SCHEDULER_S: Final = 1.0


class RequestStore(Protocol):
    """The part of the store that is asked."""

    async def get_request(self, request_id: str) -> StoredRequest | None: ...

    async def list_requests(
        self,
        limit: int,
        state: int | None = None,
        tenant: str | None = None,
        before: tuple[int, str] | None = None,
    ) -> list[ListedRequest]: ...


class Queries:
    """Reads of the ledger, in memory first, then in the store. A tenant sees its own requests only."""

    def __init__(self, ledger: Ledger, adoption: Adoption, store: RequestStore | None, clock: Clock) -> None:
        self._ledger = ledger
        self._adoption = adoption
        self._store = store
        self._clock = clock

    async def get(self, request_id: str, tenant: str) -> router_pb2.RequestRecord:
        """One request. Raises NOT_FOUND, STORE_UNAVAILABLE."""
        request = self._ledger.find(request_id)
        if request is not None:
            record = live_record(request)
        else:
            stored = await self._stored(request_id)
            if stored is None:
                raise not_found(request_id)
            record = stored_record(stored.request, stored.attempts, stored.tokens.count)
        if tenant and record.tenant != tenant:
            raise not_found(request_id)
        return record

    async def page(
        self, asked: router_pb2.ListRequestsRequest, tenant: str
    ) -> router_pb2.ListRequestsResponse:
        """Requests, newest first. When the store is down the ones in memory are listed."""
        limit = min(asked.limit or DEFAULT_LIMIT, MAX_LIMIT)
        before = _parse_token(asked.page_token)
        only = tenant or asked.tenant
        if tenant and asked.tenant not in ("", tenant):
            return router_pb2.ListRequestsResponse()
        found = {
            request.request_id: live_record(request)
            for request in (self._ledger.live() if asked.live_only else self._ledger.all())
            if (not asked.state or int(request.state) == asked.state)
            and (not only or request.tenant == only)
            and (before is None or (request.arrival.unix_ms, request.request_id) < before)
        }
        if self._store is not None and not asked.live_only:
            for listed in await self._listed(limit, asked.state or None, only or None, before):
                row = listed.request
                # Memory knows better: what the store has of a live request may be a moment old.
                if row.request_id not in found and self._ledger.find(row.request_id) is None:
                    found[row.request_id] = stored_record(row, listed.attempts, 0)
        newest = sorted(found.values(), key=lambda r: (r.arrived_unix_ms, r.request_id), reverse=True)
        page = newest[:limit]
        more = len(newest) > limit or (len(page) == limit and not asked.live_only and self._store is not None)
        token = _make_token(page[-1]) if more and page else ""
        return router_pb2.ListRequestsResponse(requests=page, next_page_token=token)

    async def explain(self, request_id: str, tenant: str) -> router_pb2.ExplainRequestResponse:
        """Why a request went where it went, and what its scheduler says now."""
        response = router_pb2.ExplainRequestResponse(request=await self.get(request_id, tenant))
        request = self._ledger.find(request_id)
        if request is None:
            return response
        estimate = request.estimate
        for attempt in request.attempts:
            explained = attempt.explained
            response.placements.add(
                attempt_number=attempt.number,
                policy=explained.policy,
                engine_id=explained.engine_id,
                reason=explained.reason,
                estimate_source=estimate.source if estimate is not None else "",
                length_p50=estimate.p50 if estimate is not None else 0.0,
                length_p90=estimate.p90 if estimate is not None else 0.0,
                length_cut_probability=estimate.p_longer(request.max_tokens) if estimate is not None else 0.0,
                scores=[
                    router_pb2.EngineScore(
                        engine_id=engine_id, score=0.0 if math.isnan(score) else score, excluded=excluded
                    )
                    for engine_id, score, excluded in explained.scores
                ],
            )
        events = [
            router_pb2.ExplainedEvent(at_ms=at_ms, event=event, detail=detail)
            for at_ms, event, detail in request.events
        ]
        notes, scheduler_events = await self._scheduler_says(request)
        response.scheduler_notes.extend(notes)
        events += scheduler_events
        events.sort(key=lambda event: event.at_ms)
        response.events.extend(events[-MAX_EVENTS:])
        return response

    async def _scheduler_says(
        self, request: LiveRequest
    ) -> tuple[list[str], list[router_pb2.ExplainedEvent]]:
        attempt = request.attempt
        if attempt is None or not attempt.engine.link.open:
            return [], []
        asked = scheduler_pb2.ExplainRequestRequest(request_id=request.request_id)
        try:
            said = await attempt.engine.link.stub.ExplainRequest(asked, timeout=_SCHEDULER_S)
        except grpc.RpcError as error:
            return [f"the scheduler did not answer: {error.code().name}"], []
        notes = [
            f"policy {said.policy}, position {said.position}, score {said.score:g}: {said.reason}",
            *(f"{name} = {value:g}" for name, value in sorted(said.estimates.items())),
        ]
        events = [
            router_pb2.ExplainedEvent(
                at_ms=event.at_ms, event=f"scheduler.{event.event}", detail=event.detail
            )
            for event in said.timeline
        ]
        return notes, events

    async def _stored(self, request_id: str) -> StoredRequest | None:
        if self._store is None:
            return None
        try:
            async with asyncio.timeout(_STORE_S):
                return await self._store.get_request(request_id)
        except TimeoutError:
            raise PacelineError(Reason.STORE_UNAVAILABLE, "the store does not answer") from None

    async def _listed(
        self, limit: int, state: int | None, tenant: str | None, before: tuple[int, str] | None
    ) -> list[ListedRequest]:
        assert self._store is not None
        try:
            async with asyncio.timeout(_STORE_S):
                return await self._store.list_requests(limit, state, tenant, before)
        except (PacelineError, TimeoutError):
            log.warning("the store was not asked for its requests: it is down")
            return []


def _make_token(last: router_pb2.RequestRecord) -> str:
    return base64.urlsafe_b64encode(f"{last.arrived_unix_ms}:{last.request_id}".encode()).decode()


def _parse_token(token: str) -> tuple[int, str] | None:
    if not token:
        return None
    try:
        arrived, _, request_id = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        return int(arrived), request_id
    except (binascii.Error, ValueError):
        raise invalid("page_token is not one that this service gave out", field="page_token") from None
