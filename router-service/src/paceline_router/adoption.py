"""Requests of an earlier life of this router: from schedulers first, then from the store."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import DecodeError

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, ledger_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_router.attempt import Attempt, Explained
from paceline_router.clock import Clock
from paceline_router.dispatch import Dispatcher
from paceline_router.durability import Durability
from paceline_router.engine import Engine
from paceline_router.estimate import Estimate
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.lifecycle import accepted_message
from paceline_router.request import Arrival, LiveRequest
from paceline_router.slo_wire import from_wire
from paceline_router.states import State
from paceline_runtime.errors import PacelineError
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import ADOPTIONS
from paceline_store.rows import StoredRequest

log = logging.getLogger(__name__)


class UnfinishedStore(Protocol):
    """The part of the store that a new life reads."""

    async def unfinished(self, router_id: str) -> list[StoredRequest]: ...


class Adoption:
    """Rebuilds requests. `settled` is set when the schedulers had their grace and the store's rest was
    replayed."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        durability: Durability,
        instruments: Instruments,
        clock: Clock,
        *,
        grace_s: float,
        default_max_wait_ms: float,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._durability = durability
        self._instruments = instruments
        self._clock = clock
        self._grace_s = grace_s
        self._default_max_wait_ms = default_max_wait_ms
        self._stored: dict[str, StoredRequest] = {}
        self._changed = asyncio.Event()
        self.settled = asyncio.Event()
        self.on_adopted: Callable[[LiveRequest], None] = lambda request: None
        self.on_conflict: Callable[[LiveRequest], None] = lambda request: None

    async def load(self, store: UnfinishedStore | None, router_id: str) -> None:
        """Read what the store has unfinished. A store that is down leaves the schedulers' part only."""
        if store is None:
            return
        try:
            self._stored = {stored.request.request_id: stored for stored in await store.unfinished(router_id)}
        except PacelineError as error:
            log.warning("unfinished requests cannot be read from the store", extra={"reason": error.message})

    async def run(self, all_answered: asyncio.Event) -> None:
        """Give the schedulers their grace, then replay what only the store knows.

        `all_answered`: every configured scheduler has said what lives there; with it the grace ends early.
        """
        try:
            async with asyncio.timeout(self._grace_s):
                await all_answered.wait()
        except TimeoutError:
            log.info("not every scheduler answered within the grace")
        for stored in list(self._stored.values()):
            try:
                self._replay_stored(stored)
            except (DecodeError, PacelineError, ValueError):
                # One row that nobody understands must not keep the router from serving.
                extra = {"request_id": stored.request.request_id}
                log.exception("a stored request cannot be rebuilt", extra=extra)
        self._stored.clear()
        self.settled.set()
        self._changed.set()

    async def find(self, request_id: str) -> LiveRequest | None:
        """A request of the ledger, after waiting for it while adoption goes on."""
        while (request := self._ledger.find(request_id)) is None and not self.settled.is_set():
            self._changed.clear()
            try:
                async with asyncio.timeout(self._grace_s + 1):
                    await self._changed.wait()
            except TimeoutError:
                break
        return request

    def adopt(self, engine: Engine, live: scheduler_pb2.LiveAttempt) -> Attempt | None:
        """Rebuild an attempt and its request from what a scheduler kept; None when it is nobody's any more."""
        key = live.spec.attempt_key
        if self._ledger.own(key) or not live.context:
            return None
        if live.spec.await_more_forced and not live.HasField("ended"):
            # A move that the last life began and did not finish: the request goes on where it was.
            return None
        try:
            context = ledger_pb2.RequestContext.FromString(live.context)
        except DecodeError:
            log.warning("an attempt's context cannot be read", extra={"request_id": live.spec.request_id})
            return None
        request = self._ledger.find(live.spec.request_id)
        if request is None or self._admitting(request):
            if live.HasField("ended") and self.settled.is_set():
                return None
            if request is not None:
                self.on_conflict(request)
            request = self._rebuild(live, context)
            if request is None:
                return None
            self._ledger.adopt(request)
            self.on_adopted(request)
            self._instruments.add(ADOPTIONS, source="scheduler")
            self._durability.resume_sync(request)
        elif request.ended or (request.attempt and request.attempt.number >= context.attempt_number):
            return None
        elif request.attempt is not None:
            request.attempt.engine.link.cancel(request.attempt.key)
            self._ledger.attempts.pop(request.attempt.key, None)
            self._fleet.gone(request.attempt.engine, request.attempt.key)
        attempt = self._rebuild_attempt(request, engine, live, context)
        self._dispatcher.waiting.pop(request, None)
        self._dispatcher.grant(request, force=True)
        self._stored.pop(request.request_id, None)
        self._changed.set()
        return attempt

    def _admitting(self, request: LiveRequest) -> bool:
        """True of a new request that has not been placed yet: it gives way to an earlier one of its id."""
        return request.placing and request not in self._dispatcher.waiting

    def _rebuild(
        self, live: scheduler_pb2.LiveAttempt, context: ledger_pb2.RequestContext
    ) -> LiveRequest | None:
        try:
            request = self._request(
                live.spec.request_id, context.spec, context.tenant, context.arrived_unix_ms, context.budget_ms
            )
            if context.HasField("estimate"):
                request.estimate = Estimate.of(context.estimate, request.max_tokens)
        except (PacelineError, ValueError) as error:
            log.warning(
                "a request cannot be rebuilt",
                extra={"request_id": live.spec.request_id, "reason": str(error)},
            )
            return None
        request.recorded = True
        if live.spec.WhichOneof("prompt") == "text":
            request.text = live.spec.text.encode()
        else:
            request.prompt_ids = live.spec.token_ids
        request.predicted_e2e_ms = context.predicted_e2e_ms
        request.turn_index = context.turn_index
        request.crashes = context.crashes
        request.isolate_until = context.isolate_until_index
        request.excluded = frozenset(context.excluded_incarnations)
        stored = self._stored.get(request.request_id)
        if stored is not None:
            request.checkpointed = stored.tokens.count
            request.text = request.text or _text_of(stored)
        if context.accepted or live.prompt_ids:
            request.prompt_ids = live.prompt_ids or request.prompt_ids
            request.prompt_tokens = len(request.prompt_ids) // 4
        return request

    def _rebuild_attempt(
        self,
        request: LiveRequest,
        engine: Engine,
        live: scheduler_pb2.LiveAttempt,
        context: ledger_pb2.RequestContext,
    ) -> Attempt:
        explained = Explained("adopted", engine.engine_id, "taken over from an earlier life", (), -1.0)
        attempt = Attempt(
            key=live.spec.attempt_key,
            number=context.attempt_number,
            request=request,
            engine=engine,
            incarnation=engine.incarnation,
            from_index=context.from_index,
            isolate_until=context.isolate_until_index,
            placed_ms=self._clock.now_ms(),
            placed_unix_ms=self._clock.unix_ms(),
            explained=explained,
            # What it was granted is not known; its next reader sets it.
            token_limit=1,
        )
        request.prior_attempts = max(context.attempt_number - 1 - len(request.attempts), 0)
        request.attempts.append(attempt)
        request.attempt = attempt
        self._ledger.attempts[attempt.key] = attempt
        self._fleet.holds(engine, attempt)
        if request.state is State.ACCEPTED:
            request.move_to(State.PLACED)
        if context.accepted and request.accepted is None:
            request.accepted = accepted_message(request, engine.engine_id)
        request.note(self._clock.now_ms(), "adopted", engine.engine_id)
        return attempt

    def _replay_stored(self, stored: StoredRequest) -> None:
        """A request that no scheduler knows: go on from its checkpoints."""
        row = stored.request
        known = self._ledger.find(row.request_id)
        if known is not None and not self._admitting(known):
            return
        spec = generation_pb2.GenerationSpec.FromString(row.spec)
        text, ids = spec.text.encode(), spec.token_ids
        spec.ClearField("input")
        request = self._request(row.request_id, spec, row.tenant, row.arrived_unix_ms, 0.0)
        if known is not None:
            self.on_conflict(known)
        request.recorded = True
        request.text = text
        request.prompt_ids = row.prompt_ids or ids
        request.prompt_tokens = row.prompt_tokens
        tokens = stored.tokens
        request.output.append(tokens.token_ids, tokens.text_lengths, tokens.text)
        request.released = request.checkpointed = tokens.count
        failed = attempt_pb2.FINISH_REASON_FAILED
        request.excluded = frozenset(a.incarnation for a in stored.attempts if a.finish_reason == failed)
        request.prior_attempts = max((a.number for a in stored.attempts), default=0)
        if row.prompt_ids is not None or tokens.count:
            request.accepted = accepted_message(
                request, stored.attempts[-1].engine_id if stored.attempts else ""
            )
        self._ledger.adopt(request)
        self.on_adopted(request)
        self._durability.resume_sync(request)
        self._instruments.add(ADOPTIONS, source="store")
        request.note(self._clock.now_ms(), "adopted", "store")
        self._dispatcher.go_or_wait(request, "replay from the store")

    def _request(
        self,
        request_id: str,
        spec: generation_pb2.GenerationSpec,
        tenant: str,
        arrived_unix_ms: int,
        budget_ms: float,
    ) -> LiveRequest:
        """A request whose clock started in an earlier life; nobody reads it yet. Raises what `from_wire`
        does."""
        if spec.slo == slo_pb2.Slo():
            spec.slo.best_effort.SetInParent()
        slo = from_wire(spec.slo)
        now_ms, now_unix_ms = self._clock.now_ms(), self._clock.unix_ms()
        arrival = Arrival(now_ms - max(now_unix_ms - arrived_unix_ms, 0), arrived_unix_ms)
        request = LiveRequest(request_id, spec, slo, tenant, arrival)
        request.max_wait_ms = spec.max_wait_ms or self._default_max_wait_ms
        request.budget_ms = budget_ms or slo.e2e_ms
        return request


def _text_of(stored: StoredRequest) -> bytes:
    """The rendered prompt in a stored spec."""
    spec = generation_pb2.GenerationSpec.FromString(stored.request.spec)
    return spec.text.encode()
