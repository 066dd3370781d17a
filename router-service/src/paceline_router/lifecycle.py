"""What happens to a request: accepted, lost, cancelled, ended. The one place where states change for good."""

import logging
from collections.abc import Callable

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2
from paceline_core.slo import SloClass
from paceline_router.attempt import Attempt
from paceline_router.clock import Clock
from paceline_router.dispatch import Dispatcher
from paceline_router.durability import Durability
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.mover import Mover
from paceline_router.outcomes import arrival_outcome, checkpoint_outcome
from paceline_router.predictor_link import PredictorLink
from paceline_router.prompt_size import PromptSizes
from paceline_router.replay import Loss, judge
from paceline_router.request import LiveRequest
from paceline_router.slo_wire import CLASS_NAMES
from paceline_router.states import State
from paceline_router.tasks import TaskBook, unattainable
from paceline_runtime.errors import ATTAINABLE_MS, PacelineError, Reason
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import (
    REPLAYS,
    REQUESTS,
    REQUESTS_REFUSED,
    SHED,
    SLO_OUTCOMES,
    TBT,
    TOKENS,
    TTFT,
    TTLT,
)

log = logging.getLogger(__name__)

_F = attempt_pb2
_WELL = {_F.FINISH_REASON_STOP, _F.FINISH_REASON_STOP_STRING, _F.FINISH_REASON_LENGTH}
_REASON_OF_STATE = {
    State.CANCELLED: _F.FINISH_REASON_CANCELLED,
    State.REJECTED: _F.FINISH_REASON_REJECTED,
    State.EXPIRED: _F.FINISH_REASON_EXPIRED,
    State.FAILED: _F.FINISH_REASON_FAILED,
}
_ELSEWHERE = {Reason.DRAINING, Reason.QUEUE_FULL, Reason.UNAVAILABLE, Reason.NO_ENGINE}
"""Refusals that say something about the engine, not about the request."""


class Lifecycle:
    """Steps of a request, and what follows from each."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        mover: Mover,
        durability: Durability,
        predictor: PredictorLink,
        tasks: TaskBook,
        sizes: PromptSizes,
        instruments: Instruments,
        clock: Clock,
        *,
        max_attempts: int,
        isolate_tokens: int,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._mover = mover
        self._durability = durability
        self._predictor = predictor
        self._tasks = tasks
        self._sizes = sizes
        self._instruments = instruments
        self._clock = clock
        self._max_attempts = max_attempts
        self._isolate_tokens = isolate_tokens
        self.on_end: Callable[[LiveRequest], None] = lambda request: None

    def accepted(self, attempt: Attempt, prompt_ids: bytes, cached_tokens: int) -> None:
        """The engine took the attempt in."""
        request = attempt.request
        attempt.accepted = True
        self._fleet.seen(attempt.engine, attempt.key)
        self._mover.accepted(attempt)
        if attempt is not request.attempt or request.ended:
            return
        if request.state is State.PLACED:
            request.move_to(State.QUEUED)
        request.cached_tokens = cached_tokens
        request.note(self._clock.now_ms(), "accepted", attempt.engine.engine_id)
        if request.accepted is not None:
            return
        self._sizes.learn(request.spec.model, len(request.text), len(prompt_ids) // 4)
        request.prompt_ids = prompt_ids or request.prompt_ids
        request.prompt_tokens = len(request.prompt_ids) // 4 or request.prompt_tokens
        request.accepted = accepted_message(request, attempt.engine.engine_id)
        self._durability.accepted(request)
        request.notify(urgent=True)

    def attempt_ended(self, attempt: Attempt, ended: attempt_pb2.AttemptEnded) -> None:
        """The engine's last word on an attempt; the tokens of the current one are here as far as they matter."""
        request = attempt.request
        reason = ended.finish_reason
        current = request.attempt is attempt
        self._close(attempt, reason)
        attempt.engine.link.release(attempt.key)
        if request.ended or not current:
            self._mover.landing_ended(attempt, ended.failure.reason or _F.FinishReason.Name(reason))
            return
        if reason == _F.FINISH_REASON_MOVED and not request.cancel_requested:
            if not self._mover.take_over(attempt):
                self._lost(attempt, False, "stopped_for_a_move", counts=False, exclude=False)
            return
        self._mover.abandon(request, "it ended where it was")
        if reason in _WELL:
            self.end(request, State.FINISHED, finish_reason=reason, stop_string=ended.stop_string)
        elif reason in (_F.FINISH_REASON_CANCELLED, _F.FINISH_REASON_MOVED) and request.cancel_requested:
            self._end_cancelled(request)
        elif reason == _F.FINISH_REASON_CANCELLED:
            why = "displaced" if attempt.displaced else "cancelled_by_engine"
            self._lost(attempt, False, why, counts=not attempt.displaced, exclude=not attempt.displaced)
        elif reason == _F.FINISH_REASON_EXPIRED:
            self.end(request, State.EXPIRED, failure=ended.failure)
        elif reason == _F.FINISH_REASON_REJECTED:
            self._rejected(attempt, ended.failure)
        elif ended.failure.reason == Reason.ENGINE_LOST:
            self._lost(attempt, ended.in_flight, "engine_lost")
        elif ended.failure.retryable:
            self._lost(attempt, False, f"failed: {ended.failure.reason}")
        else:
            self.end(request, State.FAILED, failure=ended.failure)

    def attempt_gone(self, attempt: Attempt, why: str, *, engine_lost: bool) -> None:
        """The attempt was lost without the engine's word: not listed any more, or its scheduler stayed away.

        `engine_lost`: its incarnation is gone; else the request may come back to the same engine.
        """
        current = attempt.request.attempt is attempt
        self._close(attempt, _F.FINISH_REASON_FAILED)
        # Should it still be there, it must not go on; its end will be released as that of an unknown attempt.
        attempt.engine.link.cancel(attempt.key)
        if current and not attempt.request.ended:
            self._mover.abandon(attempt.request, f"it was lost where it was: {why}")
            self._lost(attempt, False, why, exclude=engine_lost)
        else:
            self._mover.landing_ended(attempt, why)

    def cancel(self, request: LiveRequest, why: str) -> None:
        """End a request on behalf of its client. It ends when the engine confirms, or at once when it is on
        none."""
        if request.ended:
            return
        if not request.cancel_requested:
            request.cancel_requested = True
            request.note(self._clock.now_ms(), "cancel", why)
        attempt = request.attempt
        if attempt is not None and not attempt.over:
            if not attempt.cancel_sent and attempt.engine.link.open:
                attempt.cancel_sent = True
                attempt.engine.link.cancel(attempt.key)
            return
        self._end_cancelled(request)

    def give_up(self, request: LiveRequest, error: PacelineError) -> None:
        """End a request whose objective is out of reach, as `cancel` does; it ends EXPIRED."""
        if not request.cancel_requested:
            request.given_up = failure_of(error)
            self.cancel(request, error.message)

    def displace(self, attempt: Attempt) -> None:
        """Take an attempt off its engine; once it is off, the request is replayed elsewhere."""
        if not attempt.over and not attempt.cancel_sent:
            attempt.displaced = attempt.cancel_sent = True
            attempt.engine.link.cancel(attempt.key)

    def refuse(self, request: LiveRequest, error: PacelineError) -> None:
        """Refuse a request before any engine worked on it."""
        self.end(request, State.REJECTED, failure=failure_of(error))

    def expire(self, request: LiveRequest) -> None:
        """It waited for an engine long enough."""
        message = f"no engine could take it within {request.max_wait_ms:.0f} ms"
        error = PacelineError(Reason.NO_ENGINE, message)
        self.end(request, State.EXPIRED, failure=failure_of(error))

    def fail(self, request: LiveRequest, error: PacelineError) -> None:
        """End a request by an error of the router's own; its attempt is taken off the engine."""
        attempt = request.attempt
        if attempt is not None and not attempt.over:
            attempt.cancel_sent = True
            attempt.engine.link.cancel(attempt.key)
        self.end(request, State.FAILED, failure=failure_of(error))

    def end(
        self,
        request: LiveRequest,
        state: State,
        *,
        finish_reason: int = 0,
        failure: attempt_pb2.Failure | None = None,
        stop_string: str = "",
    ) -> None:
        """The end: outcome, ledger, task, store and readers, and last what is learned and counted."""
        self._mover.abandon(request, "the request ended")
        now_ms = self._clock.now_ms()
        request.move_to(state)
        request.ended_ms = now_ms
        self._dispatcher.waiting.pop(request, None)
        elapsed_ms = now_ms - request.arrival.ms
        completed = state is State.FINISHED
        outcome = request.timeline.outcome(request.slo, completed, elapsed_ms, request.budget_ms)
        request.finished = generation_pb2.Finished(
            finish_reason=finish_reason or _REASON_OF_STATE[state],  # type: ignore[arg-type]
            failure=failure,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            output_tokens=request.output.count,
            outcome=outcome,
            attempts=request.attempts_made,
            engine_id=request.attempts[-1].engine.engine_id if request.attempts else "",
            stop_string=stop_string,
            predicted_tokens=request.estimate.median_tokens if request.estimate is not None else 0,
        )
        request.note(now_ms, state.name.lower(), "" if failure is None else failure.reason)
        self._ledger.end(request, retain=state is not State.REJECTED)
        self._ledger.expire(now_ms)
        self._tasks.call_ended(request, attained=outcome.attained)
        if state is State.EXPIRED and failure is not None and failure.reason == Reason.SLO_UNATTAINABLE:
            self._doom(request, failure)
        self._durability.ended(request)
        self._learn(request, state, finish_reason)
        self._count(request, state)
        self.on_end(request)
        request.drop_input()

    def _end_cancelled(self, request: LiveRequest) -> None:
        """It was cancelled by its client, or given up by the router."""
        if request.given_up is None:
            self.end(request, State.CANCELLED)
        else:
            self.end(request, State.EXPIRED, failure=request.given_up)

    def _doom(self, request: LiveRequest, failure: attempt_pb2.Failure) -> None:
        """A call was given up: its task is dead, and what else it runs is of no use."""
        if request.slo.slo_class is not SloClass.TASK:
            return
        task, calls = self._tasks.doom(request, failure.attainable_ms)
        for call in calls:
            if task is not None and not call.cancel_requested:
                self._instruments.add(SHED, reason="task_dead")
                self.give_up(call, unattainable(task, call))

    def _close(self, attempt: Attempt, reason: int) -> None:
        """The attempt is over; the request has none until it is placed again."""
        attempt.finish_reason = reason
        self._ledger.attempts.pop(attempt.key, None)
        self._fleet.gone(attempt.engine, attempt.key)
        if attempt.request.attempt is attempt:
            attempt.request.attempt = None
        if not attempt.landing:
            self._durability.attempt(attempt)

    def _rejected(self, attempt: Attempt, failure: attempt_pb2.Failure) -> None:
        """Refused by the engine: try another one if it is about the engine, else pass the refusal on."""
        request = attempt.request
        about_engine = failure.reason in _ELSEWHERE
        if request.cancel_requested:
            self._end_cancelled(request)
        elif about_engine and request.tries < self._max_attempts:
            self._exclude(attempt)
            request.move_to(State.ACCEPTED)
            if not self._dispatcher.go(request, f"refused: {failure.reason}"):
                if request.accepted is None:
                    self.end(request, State.REJECTED, failure=failure)
                else:
                    self._dispatcher.go_or_wait(request, "refused")
        elif request.accepted is None:
            self.end(request, State.REJECTED, failure=failure)
        else:
            self.end(request, State.FAILED, failure=failure)

    def _lost(
        self, attempt: Attempt, in_flight: bool, why: str, *, counts: bool = True, exclude: bool = True
    ) -> None:
        """The attempt is gone before its end: replay, wait, or give up."""
        request = attempt.request
        now_ms = self._clock.now_ms()
        request.note(
            now_ms, "lost", f"{attempt.engine.engine_id}: {why}" + (", in flight" if in_flight else "")
        )
        if exclude:
            self._exclude(attempt)
        if request.cancel_requested:
            self._end_cancelled(request)
            return
        loss = Loss(
            in_flight,
            request.output.count,
            request.tries if counts else 0,
            request.crashes,
            request.isolate_until,
        )
        verdict = judge(loss, max_attempts=self._max_attempts, isolate_tokens=self._isolate_tokens)
        request.crashes, request.isolate_until = verdict.crashes, verdict.isolate_until
        if verdict.replay:
            self._instruments.add(REPLAYS, reason=why.partition(":")[0])
            self._dispatcher.go_or_wait(request, f"replay after {why}")
        else:
            error = PacelineError(verdict.reason, verdict.message, retryable=verdict.retryable)
            self.end(request, State.FAILED, failure=failure_of(error))

    def _exclude(self, attempt: Attempt) -> None:
        attempt.request.excluded |= {attempt.incarnation}

    def _learn(self, request: LiveRequest, state: State, finish_reason: int) -> None:
        if request.accepted is None:
            return
        by_itself = state is State.FINISHED and finish_reason != _F.FINISH_REASON_LENGTH
        self._predictor.observe(arrival_outcome(request, censored=not by_itself))
        if self._predictor.configured:
            further = checkpoint_outcome(request, censored=not by_itself)
            if further is not None:
                self._predictor.observe(further)

    def _count(self, request: LiveRequest, state: State) -> None:
        model, slo_class = request.spec.model, CLASS_NAMES[request.slo.slo_class]
        if state is State.REJECTED:
            reason = request.finished.failure.reason if request.finished is not None else ""
            self._instruments.add(REQUESTS_REFUSED, reason=reason, tenant=request.tenant)
            return
        add, record = self._instruments.add, self._instruments.record
        add(REQUESTS, model=model, slo_class=slo_class, tenant=request.tenant, outcome=state.name.lower())
        assert request.finished is not None
        outcome = request.finished.outcome
        met = "met" if outcome.attained else "missed"
        add(SLO_OUTCOMES, model=model, slo_class=slo_class, outcome=met)
        if outcome.tokens:
            in_time = outcome.tokens_in_time
            add(TOKENS, in_time, model=model, slo_class=slo_class, outcome="in_time")
            add(TOKENS, outcome.tokens - in_time, model=model, slo_class=slo_class, outcome="late")
            record(TTFT, outcome.ttft_ms / 1000, model=model, slo_class=slo_class)
            record(TTLT, outcome.ttlt_ms / 1000, model=model, slo_class=slo_class)
            if outcome.tbt_mean_ms:
                record(TBT, outcome.tbt_mean_ms / 1000, model=model, slo_class=slo_class)


def accepted_message(request: LiveRequest, engine_id: str) -> generation_pb2.Accepted:
    """What the client is told at acceptance."""
    estimate = request.estimate
    return generation_pb2.Accepted(
        request_id=request.request_id,
        model=request.spec.adapter or request.spec.model,
        engine_id=engine_id,
        slo=request.spec.slo,
        prompt_tokens=request.prompt_tokens,
        predicted_e2e_ms=max(request.predicted_e2e_ms, 0.0),
        predicted_tokens=estimate.median_tokens if estimate is not None else 0,
        estimate_source=estimate.source if estimate is not None else "",
        durability=request.durability,  # type: ignore[arg-type]
        arrived_unix_ms=request.arrival.unix_ms,
    )


def failure_of(error: PacelineError) -> attempt_pb2.Failure:
    """An error as it travels in a terminal event."""
    return attempt_pb2.Failure(
        reason=error.reason.value,
        message=error.message,
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms or 0.0,
        attainable_ms=float(error.metadata.get(ATTAINABLE_MS, 0)),
    )
