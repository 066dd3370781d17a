"""What schedulers say, carried out: sessions that open and break, acceptances, tokens, ends, loads, lost
engines."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from paceline.common.v1 import attempt_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_router.attempt import Attempt
from paceline_router.clock import Clock
from paceline_router.dispatch import Dispatcher
from paceline_router.durability import Durability
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.lifecycle import Lifecycle
from paceline_router.mover import Mover
from paceline_router.scheduler_link import SchedulerLink
from paceline_router.token_intake import TokenIntake

log = logging.getLogger(__name__)

_NO_WAIT = {
    attempt_pb2.FINISH_REASON_REJECTED,
    attempt_pb2.FINISH_REASON_FAILED,
    attempt_pb2.FINISH_REASON_MOVED,
}
"""Ends that are taken over even when tokens are missing: the request goes elsewhere, or the engine has none. After a
cancel they are waited for too: the client may have had them from an earlier life of the router; the end counts them."""


class Adopter(Protocol):
    """Takes over attempts of an earlier life of this router."""

    def adopt(self, engine: Engine, live: scheduler_pb2.LiveAttempt) -> Attempt | None:
        """The attempt rebuilt, or None when it is nobody's any more."""
        ...


class Intake:
    """Implements `scheduler_link.LinkEvents`. Everything here runs on the event loop and never waits."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        mover: Mover,
        tokens: TokenIntake,
        adopter: Adopter,
        durability: Durability,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._mover = mover
        self._tokens = tokens
        self._adopter = adopter
        self._durability = durability
        self._clock = clock
        self.on_risks: Callable[[Sequence[scheduler_pb2.Risk]], None] = lambda risks: None

    def on_hello_ack(self, link: SchedulerLink, ack: scheduler_pb2.HelloAck) -> None:
        """The session is open, or the engine came back: compare what lives there with what should."""
        link.scheduler_id = ack.scheduler_id
        if not ack.identity.engine_id:
            if (known := _engine_of(link)) is not None:
                self._fleet.went_down(known)
            return
        before = _engine_of(link)
        engine = self._fleet.join(ack.identity.engine_id, link)
        if before is not None and before is not engine:
            # Another engine stands behind this scheduler now; what was on the old one is given up after the grace.
            self._fleet.went_down(before)
        link.engine = engine
        reborn = engine.incarnation != ack.identity.incarnation
        if reborn and engine.incarnation:
            self._durability.engine(engine, lost=True)
        self._fleet.came_up(engine, ack.identity, ack.capabilities, self._clock.now_ms())
        engine.executor_endpoint = ack.executor_endpoint
        if reborn:
            self._durability.engine(engine, lost=False)
            log.info("engine up", extra={"engine_id": engine.engine_id, "incarnation": engine.incarnation})
        listed = {live.spec.attempt_key for live in ack.live}
        for live in ack.live:
            self._reconcile(engine, live)
        for attempt in [a for a in engine.attempts.values() if a.key not in listed]:
            engine.lost_attempts += 1
            lost = attempt.incarnation != engine.incarnation
            self._lifecycle.attempt_gone(attempt, "engine_lost" if lost else "not_listed", engine_lost=lost)
        if ack.HasField("load"):
            self._take_load(engine, ack.load)
        self._dispatcher.engine_available()

    def on_update(self, link: SchedulerLink, update: scheduler_pb2.Update) -> None:
        """Everything that happened since the last update, in the order of its fields."""
        engine = _engine_of(link)
        attempts = self._ledger.attempts
        for accepted in update.accepted:
            attempt = attempts.get(accepted.attempt_key)
            if attempt is not None:
                self._lifecycle.accepted(attempt, accepted.prompt_ids, accepted.cached_tokens)
        for issued in update.tickets:
            self._mover.ticket(issued)
        for batch in update.tokens:
            try:
                self._tokens.take(batch)
            except (ValueError, DecodeError):
                log.exception("malformed token batch", extra={"scheduler_id": link.scheduler_id})
        if engine is not None and update.HasField("engine_lost"):
            self._engine_lost(engine, update.engine_lost)
        if update.risks:
            self.on_risks(update.risks)
        for key in update.landed:
            self._mover.landed(key)
        for ended in update.ended:
            attempt = attempts.get(ended.attempt_key)
            if attempt is None:
                link.release(ended.attempt_key)
            else:
                attempt.ended = ended
                self.settle(attempt)
        if engine is None:
            return
        if update.HasField("engine_lost"):
            # The ends came along; what is left was lost without a word.
            lost = update.engine_lost.identity.incarnation
            for attempt in [a for a in engine.attempts.values() if a.incarnation == lost]:
                self._lifecycle.attempt_gone(attempt, "engine_lost", engine_lost=True)
        elif update.tokens:
            # Tokens may have closed a gap behind an end that waits.
            self._settle_waiting(engine)
        if update.HasField("load"):
            self._take_load(engine, update.load)

    def on_broken(self, link: SchedulerLink, reason: str) -> None:
        """The session broke. Its attempts are kept for the grace; nothing new is placed there."""
        if (engine := _engine_of(link)) is not None:
            self._fleet.went_down(engine)
            self._mover.link_broken(engine)

    def settle(self, attempt: Attempt) -> None:
        """Take over the end of an attempt, unless tokens before it are still missing: then ask for them."""
        ended = attempt.ended
        if ended is None:
            return
        have = attempt.request.output.count
        # A request that has ended here takes no more tokens: there is nothing to wait for.
        wanted = attempt.request.attempt is attempt and not attempt.request.ended
        if wanted and ended.finish_reason not in _NO_WAIT and have < ended.output_tokens:
            if attempt.republish_asked_at != have:
                attempt.republish_asked_at = have
                attempt.engine.link.republish(attempt.key, have)
            return
        self._lifecycle.attempt_ended(attempt, ended)

    def _settle_waiting(self, engine: Engine) -> None:
        waiting = [a for a in engine.attempts.values() if a.ended is not None]
        for attempt in waiting:
            self.settle(attempt)

    def _reconcile(self, engine: Engine, live: scheduler_pb2.LiveAttempt) -> None:
        """One attempt that lives there: bring both sides to the same place."""
        key, link = live.spec.attempt_key, engine.link
        attempt = self._ledger.attempts.get(key)
        if attempt is None:
            attempt = self._adopter.adopt(engine, live)
        if attempt is None:
            if live.HasField("ended"):
                link.release(key)
            else:
                link.cancel(key)
            return
        if not attempt.accepted and live.prompt_ids:
            self._lifecycle.accepted(attempt, live.prompt_ids, 0)
        request = attempt.request
        if request.attempt is attempt:
            if request.cancel_requested or attempt.displaced or request.ended:
                attempt.cancel_sent = True
                link.cancel(key)
                attempt.republish_asked_at = -1  # what was asked for went with the old session
            elif not live.HasField("ended") or live.ended.output_tokens > request.output.count:
                attempt.republish_asked_at = request.output.count
                link.republish(key, request.output.count)
                if attempt.token_limit:
                    link.credit(key, attempt.token_limit)
                if attempt.hand_over is not None:
                    link.forced(attempt.hand_over)
        if live.HasField("ended"):
            attempt.ended = live.ended
            self.settle(attempt)

    def _engine_lost(self, engine: Engine, lost: scheduler_pb2.EngineLost) -> None:
        if lost.identity.incarnation != engine.incarnation:
            return
        engine.lost_attempts += len(engine.attempts)
        self._fleet.went_down(engine)
        self._durability.engine(engine, lost=True)
        log.warning(
            "engine lost",
            extra={"engine_id": engine.engine_id, "cause": lost.cause, "attempts": len(engine.attempts)},
        )

    def _take_load(self, engine: Engine, load: scheduler_pb2.Load) -> None:
        was_available = engine.up and not engine.draining and not engine.scheduler_draining
        self._fleet.take_load(engine, load, self._clock.now_ms())
        if not load.engine_up:
            self._fleet.went_down(engine)
        elif not engine.up and load.identity.incarnation == engine.incarnation and engine.link.open:
            engine.up = True
            self._fleet.refresh(engine)
        if not was_available and engine.up and not engine.draining and not engine.scheduler_draining:
            self._dispatcher.engine_available()


def _engine_of(link: SchedulerLink) -> Engine | None:
    """The engine behind a scheduler, unless a newer scheduler has it."""
    return link.engine if link.engine is not None and link.engine.link is link else None
