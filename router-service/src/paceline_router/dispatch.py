"""Sends attempts to engines, holds requests for which there is none, and grants credit."""

import logging

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import ledger_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.prefix import prefix_hashes
from paceline_core.slo import SloClass
from paceline_router.attempt import Attempt, Explained
from paceline_router.clock import Clock
from paceline_router.durability import Durability
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.placement import Placed, Placer, cache_salt
from paceline_router.request import LiveRequest
from paceline_router.slo_wire import to_wire
from paceline_router.states import State

log = logging.getLogger(__name__)


class Dispatcher:
    """From a placed request to a running attempt. `waiting`: accepted work for which no engine is there now."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        placer: Placer,
        durability: Durability,
        clock: Clock,
        window_tokens: int,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._placer = placer
        self._durability = durability
        self._clock = clock
        self._window_tokens = window_tokens
        self.waiting: dict[LiveRequest, float] = {}

    def go(self, request: LiveRequest, why: str) -> bool:
        """Place the request and send it. False: no engine may take it now, and the caller decides what then."""
        placed = self._placer.place(request)
        if placed.engine is None:
            request.note(self._clock.now_ms(), "no_engine", placed.placement.reason)
            return False
        self._send(request, placed.engine, placed, why)
        return True

    def go_or_wait(self, request: LiveRequest, why: str) -> None:
        """Place the request, or let it wait for an engine, for at most its `max_wait_ms`."""
        request.move_to(State.ACCEPTED)
        if not self.go(request, why):
            self.waiting[request] = self._clock.now_ms() + request.max_wait_ms

    def engine_available(self) -> None:
        """An engine came up or takes requests again: place who waits, oldest first."""
        for request in list(self.waiting):
            if request.ended:
                del self.waiting[request]
            elif self.go(request, "engine_available"):
                self.waiting.pop(request, None)

    def take_expired(self) -> list[LiveRequest]:
        """Requests whose wait is over; they wait no longer."""
        now_ms = self._clock.now_ms()
        expired = [request for request, until_ms in self.waiting.items() if until_ms <= now_ms]
        for request in expired:
            del self.waiting[request]
        return expired

    def grant(self, request: LiveRequest, *, force: bool = False) -> None:
        """Raise the credit of the running attempt as its readers take tokens; small steps are saved up."""
        attempt = request.attempt
        if attempt is None or attempt.token_limit == 0 or attempt.ended is not None:
            return
        limit = self._limit(request)
        gain = limit - attempt.token_limit
        if gain <= 0:
            return
        if force or gain >= self._window_tokens // 2 or request.output.count >= attempt.token_limit - 1:
            attempt.token_limit = limit
            attempt.engine.link.credit(attempt.key, limit)

    def land(
        self,
        request: LiveRequest,
        engine: Engine,
        reason: str,
        replay: attempt_pb2.ReplayMode.ValueType,
        ticket: attempt_pb2.KvTicket | None,
    ) -> Attempt:
        """Send an attempt that gets ready to take over: it takes in what is out so far, and then waits for the rest."""
        # Room for one token more than are out: else it would count as out of credit, and not get ready.
        limit = max(self._limit(request), request.output.count + 1)
        explained = Explained("move", engine.engine_id, reason, (), -1.0)
        attempt = self._attempt(request, engine, explained, 0 if limit >= request.max_tokens else limit)
        attempt.landing = True
        self._ledger.attempts[attempt.key] = attempt
        self._fleet.placed(engine, attempt, self._placer.view_of(request))
        submit = self._submit(request, attempt, attempt.placed_ms)
        submit.spec.await_more_forced = True
        submit.spec.replay = replay
        if ticket is not None:
            submit.spec.kv_ticket.CopyFrom(ticket)
        engine.link.submit(submit)
        return attempt

    def _limit(self, request: LiveRequest) -> int:
        """How far the attempt may generate: the furthest reader's window, within what it allows itself."""
        bounds = []
        for outlet in request.outlets:
            bound = outlet.sent + self._window_tokens
            bounds.append(min(bound, outlet.limit) if outlet.limit else bound)
        furthest = max(bounds, default=request.released + self._window_tokens)
        return max(1, min(furthest, request.max_tokens))

    def _send(self, request: LiveRequest, engine: Engine, placed: Placed, why: str) -> None:
        limit = self._limit(request)
        bound = 0 if limit >= request.max_tokens else limit
        attempt = self._attempt(request, engine, placed.explained, bound)
        now_ms = attempt.placed_ms
        request.attempts.append(attempt)
        request.attempt = attempt
        if placed.placement.predicted_ms > 0:
            request.predicted_e2e_ms = now_ms - request.arrival.ms + placed.placement.predicted_ms
        self._ledger.attempts[attempt.key] = attempt
        self._fleet.placed(engine, attempt, placed.view)
        request.move_to(State.PLACED)
        request.note(now_ms, "placed", f"{engine.engine_id}: {why}, {placed.explained.reason}")
        self._durability.attempt(attempt)
        engine.link.submit(self._submit(request, attempt, now_ms))

    def _attempt(self, request: LiveRequest, engine: Engine, explained: Explained, limit: int) -> Attempt:
        return Attempt(
            key=self._ledger.next_key(),
            number=request.attempts_made + 1,
            request=request,
            engine=engine,
            incarnation=engine.incarnation,
            from_index=request.output.count,
            isolate_until=request.isolate_until,
            placed_ms=self._clock.now_ms(),
            placed_unix_ms=self._clock.unix_ms(),
            explained=explained,
            token_limit=limit,
        )

    def _submit(self, request: LiveRequest, attempt: Attempt, now_ms: float) -> scheduler_pb2.Submit:
        spec = attempt_pb2.AttemptSpec(
            attempt_key=attempt.key,
            request_id=request.request_id,
            forced_ids=bytes(request.output.ids),
            replay=attempt_pb2.REPLAY_MODE_EXACT,
            max_tokens=request.max_tokens,
            sampling=request.spec.sampling,
            cache_salt=cache_salt(request),
            adapter=request.spec.adapter,
            traceparent=request.spec.traceparent,
        )
        if request.prompt_ids:
            spec.token_ids = request.prompt_ids
        else:
            spec.text = request.text.decode()
        elapsed_ms = now_ms - request.arrival.ms
        submit = scheduler_pb2.Submit(
            spec=spec,
            slo=to_wire(request.slo, request.spec.slo),
            elapsed_ms=elapsed_ms,
            tenant=request.tenant,
            priority=request.spec.priority,
            token_limit=attempt.token_limit,
            isolate_until_index=attempt.isolate_until,
            # Only a bound that the client asked for: a long queue is not an error by itself.
            max_wait_ms=request.spec.max_wait_ms,
            context=self.context(request, attempt).SerializeToString(),
            prefix_hashes=prefix_hashes(request.text, cache_salt(request).encode()),
        )
        if (estimate := request.latest_estimate) is not None:
            submit.estimate.CopyFrom(estimate.message)
        if request.forecast is not None:
            submit.task_forecast.CopyFrom(request.forecast)
        if request.slo.slo_class is SloClass.TASK:
            submit.task_left_ms = request.budget_ms - elapsed_ms
            submit.task_call_budget_ms = max(min(submit.task_left_ms, request.call_due_ms - now_ms), 1.0)
        return submit

    def context(self, request: LiveRequest, attempt: Attempt) -> ledger_pb2.RequestContext:
        """What the next life of this router needs to take the request over."""
        return ledger_pb2.RequestContext(
            spec=request.spec,
            tenant=request.tenant,
            arrived_unix_ms=request.arrival.unix_ms,
            attempt_number=attempt.number,
            from_index=attempt.from_index,
            crashes=request.crashes,
            estimate=None if request.estimate is None else request.estimate.message,
            predicted_e2e_ms=request.predicted_e2e_ms,
            accepted=request.accepted is not None,
            excluded_incarnations=sorted(request.excluded),
            turn_index=request.turn_index,
            isolate_until_index=request.isolate_until,
            budget_ms=request.budget_ms,
        )
