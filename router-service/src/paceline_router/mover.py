"""Carries out moves of live requests in two phases, so that nothing is lost and the client notices a pause at most.

Phase 1: the landing engine takes in what is out so far, by KV or by tokens, while the other one goes on. Phase 2: that
one stops, the landing attempt is given what was written meanwhile, and goes on from there.
"""

import asyncio
import logging
from collections import Counter

import numpy as np

from paceline.common.v1 import attempt_pb2, engine_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_router.attempt import Attempt
from paceline_router.clock import Clock
from paceline_router.config import RectifyConfig
from paceline_router.dispatch import Dispatcher
from paceline_router.durability import Durability
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.move import Move, MoveFailed, Phase, Way
from paceline_router.move_ways import Costs, Load, MoveTimes, model_ms, open_ways
from paceline_router.request import LiveRequest
from paceline_router.states import State
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import KV_MOVED_BYTES, MIGRATIONS, MOVE_DURATION

log = logging.getLogger(__name__)

_MOVABLE = {State.QUEUED, State.RUNNING, State.PAUSED, State.EVICTED}


class Mover:
    """Moves under way. Everything runs on the event loop; nothing waits but callers of `move`."""

    def __init__(
        self,
        config: RectifyConfig,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        durability: Durability,
        instruments: Instruments,
        clock: Clock,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._durability = durability
        self._instruments = instruments
        self._clock = clock
        self._moves: dict[LiveRequest, Move] = {}
        self.times = MoveTimes()
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._moves)

    async def move(self, request: LiveRequest, engine_id: str, way: Way | None) -> Move:
        """Move on behalf of an operator; returns when it is done. Raises NOT_FOUND, FAILED_PRECONDITION, UNAVAILABLE
        when it failed, and nothing has changed then."""
        target = self._fleet.get(engine_id)
        if target is None:
            known = ", ".join(e.engine_id for e in self._fleet) or "none"
            raise PacelineError(Reason.NOT_FOUND, f"no engine {engine_id!r}; known: {known}")
        if (refusal := self.refusal(request, target)) is not None:
            raise PacelineError(Reason.FAILED_PRECONDITION, f"{request.request_id} is not moved: {refusal}")
        move = self.start(request, target, "operator", 0.0, way)
        try:
            return await asyncio.shield(move.done)
        except MoveFailed as error:
            raise PacelineError(Reason.UNAVAILABLE, f"the move failed: {error}") from None

    def refusal(self, request: LiveRequest, target: Engine) -> str | None:
        """Why the request cannot move there now; None: it can."""
        attempt = request.attempt
        if request.ended or request.cancel_requested or attempt is None or not attempt.accepted:
            return "it does not run on an engine"
        if request.move is not None:
            return "a move is under way"
        if request.spec.not_movable:
            return "it asked not to be moved"
        if request.moves >= self._config.max_moves:
            return f"it was moved {request.moves} times, which is the limit"
        if request.state not in _MOVABLE or attempt.displaced or attempt.ended is not None:
            return f"it is {request.state.name.lower()}"
        if attempt.isolate_until > request.output.count:
            return "it runs apart from others, after a crash"
        source = attempt.engine
        if target is source:
            return "it is there already"
        if not source.up or not source.link.open:
            return f"its engine {source.engine_id} is out of reach"
        if not target.up or not target.link.open or target.draining or target.scheduler_draining:
            return f"engine {target.engine_id} takes no requests"
        if target.incarnation in request.excluded:
            return f"it was lost on engine {target.engine_id} before"
        here, there = source.capabilities, target.capabilities
        if (here.model, here.tokenizer_id) != (there.model, there.tokenizer_id):
            return f"engine {target.engine_id} serves another model"
        if 0 < there.max_context_tokens < request.prompt_tokens + request.output.count + 1:
            return f"the context of engine {target.engine_id} is too short"
        if max(self._in_flight(source), self._in_flight(target)) >= self._config.moves_per_engine:
            return "enough moves are under way on these engines"
        return None

    def start(
        self, request: LiveRequest, target: Engine, reason: str, gain: float, way: Way | None = None
    ) -> Move:
        """Begin a move that `refusal` has nothing against. `gain`: what the policy expects of it."""
        attempt = request.attempt
        assert attempt is not None
        now_ms = self._clock.now_ms()
        expected = self._expected_ms(request, attempt.engine, target)
        if way not in expected:
            way = min(expected, key=lambda w: expected[w])
        move = Move(
            source=attempt,
            target=target,
            way=way,
            reason=reason,
            gain=gain,
            started_ms=now_ms,
            expected_ms=expected[way],
            deadline_ms=now_ms + self._config.timeout_s * 1000,
        )
        request.move = self._moves[request] = move
        request.moves += 1
        ways = ", ".join(f"{w.label} {ms:.0f} ms" for w, ms in expected.items())
        detail = f"to {target.engine_id} by {way.label} ({ways}): {reason}, gain {gain:.3g}"
        request.note(now_ms, "move_started", detail)
        if way is Way.KV:
            attempt.engine.link.move_out(attempt.key)
        else:
            self._land(move, None)
        return move

    # What schedulers say of it.

    def ticket(self, issued: scheduler_pb2.MoveTicket) -> None:
        """The engine that is left gave out its KV, or has none: then the tokens go."""
        attempt = self._ledger.attempts.get(issued.attempt_key)
        move = attempt.request.move if attempt is not None else None
        if move is None or move.source is not attempt or move.phase is not Phase.TICKET:
            return
        if issued.HasField("failure"):
            self._note(move, "move_without_kv", f"{issued.failure.reason}: {issued.failure.message}")
            move.way = Way.REPLAY_EXACT
            self._land(move, None)
        else:
            self._land(move, issued.ticket)

    def landed(self, key: int) -> None:
        """The landing attempt has taken in what it was given."""
        attempt = self._ledger.attempts.get(key)
        move = attempt.request.move if attempt is not None else None
        if move is not None and move.landing is attempt and move.phase is Phase.LANDING:
            took_ms = self._clock.now_ms() - move.submitted_ms
            load, costs = self._load(move.source.request, move.source.engine), self._costs(move.target)
            source, target = move.source.engine.engine_id, move.target.engine_id
            self.times.landed(
                move.way, source, target, move.kv_bytes, model_ms(move.way, load, costs), took_ms
            )
            self._stop(move)

    def accepted(self, attempt: Attempt) -> None:
        """An engine took an attempt in. One that cannot work ahead of the final ids is ready with that."""
        move = attempt.request.move
        if move is None or move.landing is not attempt or move.phase is not Phase.LANDING:
            return
        by_step = engine_pb2.PLAN_GRANULARITY_ITERATION
        if not move.prepared or attempt.engine.capabilities.plan_granularity != by_step:
            self._stop(move)

    def take_over(self, source: Attempt) -> bool:
        """The old engine has stopped it, and all its tokens are here: the landing attempt goes on. False: there is none
        that could."""
        request = source.request
        move = request.move
        if move is None or move.source is not source or move.phase is not Phase.STOPPING:
            return False
        landing = move.landing
        if landing is None or landing.over or not landing.engine.link.open:
            self.abandon(request, "the landing engine is out of reach")
            return False
        now_ms = self._clock.now_ms()
        move.phase, move.stopped_ms, move.from_index = Phase.DONE, now_ms, request.output.count
        landing.landing, landing.from_index = False, request.output.count
        landing.hand_over = move.hand_over(request.output.ids)
        landing.engine.link.forced(landing.hand_over)
        request.attempts.append(landing)
        request.attempt = landing
        request.moves_done += 1
        request.move_to(State.MIGRATING)
        self._dispatcher.grant(request, force=True)
        self._durability.attempt(landing)
        detail = f"{source.engine.engine_id} -> {move.target.engine_id} at {move.from_index} ({move.prepared} ahead)"
        request.note(now_ms, "moved", f"{detail}: {move.reason}")
        self._close(request, move, "moved")
        self._instruments.record(MOVE_DURATION, (now_ms - move.started_ms) / 1000, way=move.way.label)
        if move.kv_bytes:
            self._instruments.add(KV_MOVED_BYTES, move.kv_bytes, engine=move.target.engine_id)
        if not move.done.done():
            move.done.set_result(move)
        return True

    def landing_ended(self, attempt: Attempt, why: str) -> None:
        """The landing attempt ended before it took over."""
        move = attempt.request.move
        if move is not None and move.landing is attempt:
            self.abandon(attempt.request, f"{move.target.engine_id}: {why}")

    def link_broken(self, engine: Engine) -> None:
        """A session broke: what was said on it may be lost. Moves that need it are given up."""
        for request, move in list(self._moves.items()):
            if engine in (move.source.engine, move.target):
                self.abandon(request, f"the session with {engine.engine_id} broke")

    def abandon(self, request: LiveRequest, why: str) -> None:
        """Give a move up, if there is one: the request goes on where it is, and if it was stopped there already, it is
        replayed."""
        move = request.move
        if move is None:
            return
        phase, move.phase = move.phase, Phase.FAILED
        landing = move.landing
        if landing is not None and not landing.over:
            landing.finish_reason = attempt_pb2.FINISH_REASON_CANCELLED
            self._ledger.attempts.pop(landing.key, None)
            self._fleet.gone(landing.engine, landing.key)
            landing.engine.link.cancel(landing.key)
        request.note(self._clock.now_ms(), "move_failed", f"{move.target.engine_id} in {phase.value}: {why}")
        log.info(
            "a move failed", extra={"request_id": request.request_id, "phase": phase.value, "cause": why}
        )
        self._close(request, move, "failed")
        if not move.done.done():
            move.done.set_exception(MoveFailed(why))
            move.done.exception()  # nobody may be waiting for it

    def sweep(self) -> None:
        """Give up what takes too long."""
        now_ms = self._clock.now_ms()
        for request, move in list(self._moves.items()):
            if now_ms >= move.deadline_ms:
                self.abandon(request, f"not done within {self._config.timeout_s:g} s")

    def _land(self, move: Move, ticket: attempt_pb2.KvTicket | None) -> None:
        request = move.source.request
        if not move.target.up or not move.target.link.open:
            self.abandon(request, "the landing engine is out of reach")
            return
        move.phase = Phase.LANDING
        move.submitted_ms = self._clock.now_ms()
        move.prepared = move.known = request.output.count
        move.kv_bytes = ticket.size_bytes if ticket is not None else 0
        mode = attempt_pb2.REPLAY_MODE_FAST if move.way is Way.REPLAY_FAST else attempt_pb2.REPLAY_MODE_EXACT
        move.landing = self._dispatcher.land(request, move.target, move.reason, mode, ticket)

    def _stop(self, move: Move) -> None:
        move.phase = Phase.STOPPING
        move.ready_ms = self._clock.now_ms()
        self._note(move, "move_ready", f"{move.target.engine_id} has {move.prepared} tokens")
        move.source.engine.link.moved(move.source.key)

    def _close(self, request: LiveRequest, move: Move, outcome: str) -> None:
        request.move = None
        self._moves.pop(request, None)
        self.counts[outcome] += 1
        cause = "operator" if move.reason == "operator" else "policy"
        self._instruments.add(MIGRATIONS, outcome=outcome, way=move.way.label, reason=cause)

    def _note(self, move: Move, event: str, detail: str) -> None:
        move.source.request.note(self._clock.now_ms(), event, detail)

    def _in_flight(self, engine: Engine) -> int:
        return sum(engine in (move.source.engine, move.target) for move in self._moves.values())

    def _expected_ms(self, request: LiveRequest, source: Engine, target: Engine) -> dict[Way, float]:
        ways = open_ways(source.capabilities, target.capabilities, allow_fast=self._config.fast_replay)
        load, costs = self._load(request, source), self._costs(target)
        ids = source.engine_id, target.engine_id
        return {way: self.times.expected_ms(way, *ids, load, costs) for way in ways}

    def _load(self, request: LiveRequest, source: Engine) -> Load:
        tokens = request.prompt_tokens + request.output.count
        kv_bytes = tokens * source.capabilities.kv_bytes_per_token
        return Load(request.prompt_tokens, request.output.count, kv_bytes)

    def _costs(self, engine: Engine) -> Costs:
        fitted = self._fleet.view(self._clock.now_ms()).costs.of(np.array([engine.row]))
        alone = float(fitted.a1_ms[0]) or float(fitted.a_ms[0] + fitted.b_ms[0])
        return Costs(
            a1_ms=alone,
            c_ms=float(fitted.c_ms[0]),
            p0_ms=float(fitted.p0_ms[0]),
            d_ms=float(fitted.d_ms[0]),
            e_ms=float(fitted.e_ms[0]),
            chunk_tokens=engine.capabilities.prefill_chunk_tokens,
        )
