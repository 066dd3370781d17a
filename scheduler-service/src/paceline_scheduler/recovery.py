"""The engine comes and goes: adopting what lives in it, and giving up what is lost with it."""

import logging

from google.protobuf.message import DecodeError

from paceline.common.v1 import attempt_pb2, engine_pb2
from paceline.executor.v1 import executor_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.batch.state import RunState
from paceline_runtime.errors import Reason
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.ends import Ends
from paceline_scheduler.intake import Intake
from paceline_scheduler.planner import Planner
from paceline_scheduler.reports import Reports
from paceline_scheduler.state import SchedulerState
from paceline_scheduler.wire import capacity_from, run_state

log = logging.getLogger(__name__)


class Recovery:
    """Brings table and engine together at each attach, and ends what was lost."""

    def __init__(
        self, state: SchedulerState, ends: Ends, intake: Intake, reports: Reports, planner: Planner
    ) -> None:
        self._state = state
        self._ends = ends
        self._intake = intake
        self._reports = reports
        self._planner = planner
        self._adopting = True

    def attached(self, attached: executor_pb2.Attached) -> bool:
        """A stream is open. True when routers must be greeted again: a new life, or one that was given up."""
        state = self._state
        engine = state.engine
        before = engine.identity
        reborn = before is not None and before.incarnation != attached.identity.incarnation
        if reborn and not engine.lost:
            self.lost("the engine was started again", everything=False)
        greet = before is None or reborn or engine.lost
        engine.identity = engine_pb2.EngineIdentity()
        engine.identity.CopyFrom(attached.identity)
        engine.capabilities = engine_pb2.EngineCapabilities()
        engine.capabilities.CopyFrom(attached.capabilities)
        engine.capacity = capacity_from(attached.capabilities)
        engine.attached, engine.lost = True, False
        if reborn:
            engine.kv.Clear()
            for attempt in state.table:
                attempt.sent = False
        if reborn:
            self._planner.new_life()
        else:
            self._planner.forget()
        adopted = self._reconcile(attached)
        self._adopting = False
        state.mark_dirty()
        log.info(
            "attached to the engine",
            extra={
                "engine_id": attached.identity.engine_id,
                "incarnation": f"{attached.identity.incarnation:016x}",
                "live": len(attached.live),
                "adopted": adopted,
            },
        )
        return greet

    def lost(self, cause: str, *, everything: bool = True) -> None:
        """The engine is gone: all attempts in it are, too. `everything`: also those it never got."""
        state = self._state
        engine = state.engine
        table = state.table
        gone = [a for a in table if a.ended is None and (everything or a.sent)]
        log.warning("engine lost", extra={"cause": cause, "attempts": len(gone)})
        state.counts["engine_lost"] += 1
        if engine.identity is not None:
            told = scheduler_pb2.EngineLost(identity=engine.identity, cause=cause)
            for session in state.sessions.all():
                session.engine_lost(told)
        for attempt in gone:
            attempt.lost = True
            if attempt.cancelling:
                self._ends.finish(
                    attempt,
                    attempt_pb2.AttemptEnded(
                        attempt_key=attempt.key,
                        finish_reason=attempt_pb2.FINISH_REASON_CANCELLED,
                        output_tokens=int(table.generated[attempt.row]),
                        prompt_tokens=int(table.prompt_tokens[attempt.row]),
                    ),
                )
                continue
            running = table.state[attempt.row] == RunState.RUNNING or self._planner.may_be_running(
                attempt.key
            )
            failure = attempt_pb2.Failure(
                reason=Reason.ENGINE_LOST, message=f"the engine was lost: {cause}", retryable=True
            )
            self._ends.finish_here(
                attempt,
                attempt_pb2.FINISH_REASON_FAILED,
                failure=failure,
                in_flight=bool(attempt.sent and (running or not attempt.accepted)),
            )
        engine.lost = True
        state.mark_output()

    def _reconcile(self, attached: executor_pb2.Attached) -> int:
        """Bring the table in line with what lives in the engine. Returns how many attempts were adopted."""
        state = self._state
        listed = set()
        adopted = 0
        for live in attached.live:
            key = live.spec.attempt_key
            listed.add(key)
            attempt = state.table.get(key)
            if attempt is None and self._adopting:
                attempt = self._adopt(live)
                adopted += attempt is not None
            if attempt is None or attempt.lost:
                # Released, given up, or nobody's: it must not run on.
                if live.HasField("ended"):
                    state.outbox.release(key)
                else:
                    state.outbox.cancel(key)
                continue
            self._catch_up(attempt, live)
        for attempt in state.table:
            if attempt.key in listed or attempt.ended is not None:
                continue
            if attempt.add is not None:  # the engine never got it, or it was on its way when the stream broke
                state.outbox.add(attempt.add)
                attempt.sent = True
                self._repeat_commands(attempt)
            else:
                failure = attempt_pb2.Failure(
                    reason=Reason.ENGINE_LOST,
                    message="the engine does not know this attempt any more",
                    retryable=True,
                )
                self._ends.finish_here(attempt, attempt_pb2.FINISH_REASON_FAILED, failure=failure)
        return adopted

    def _adopt(self, live: executor_pb2.LiveAttempt) -> Attempt | None:
        """A row for an attempt that an earlier life of this scheduler had sent."""
        state = self._state
        try:
            context = scheduler_pb2.AttemptContext.FromString(live.context)
        except DecodeError:
            log.warning(
                "an attempt with an unreadable context",
                extra={"attempt_key": f"{live.spec.attempt_key:016x}"},
            )
            state.counts["unreadable_context"] += 1
            return None
        arrived_ms = state.now_ms() - (state.unix_ms() - context.arrived_unix_ms)
        attempt = self._intake.row(
            context.submit, live.spec, context.router_id, arrived_ms, context.arrived_unix_ms
        )
        add = executor_pb2.AddAttempt(context=live.context)
        add.spec.CopyFrom(live.spec)
        attempt.add = add
        state.table.generated[attempt.row] = live.output_tokens
        state.table.started[attempt.row] = live.output_tokens > 0 or live.kv_tokens > 0
        attempt.note(state.now_ms() - arrived_ms, "adopted")
        return attempt

    def _catch_up(self, attempt: Attempt, live: executor_pb2.LiveAttempt) -> None:
        """What happened to an attempt while no stream was open."""
        state = self._state
        table = state.table
        attempt.sent = True
        if live.prompt_ids and not attempt.accepted:
            accepted = attempt_pb2.AttemptAccepted(attempt_key=attempt.key, prompt_ids=live.prompt_ids)
            self._reports.accepted(accepted)
        if attempt.ended is not None:
            return
        table.kv_tokens[attempt.row] = live.kv_tokens
        stands = run_state(live.state)
        if stands is not None:
            self._reports.moved_to(attempt, stands, state.now_ms())
        if live.output_tokens > table.generated[attempt.row]:
            attempt.missing_until = live.output_tokens
            state.outbox.republish(attempt.key, int(table.generated[attempt.row]))
        if live.HasField("ended"):
            if attempt.missing_until > table.generated[attempt.row]:
                attempt.held_end = attempt_pb2.AttemptEnded()
                attempt.held_end.CopyFrom(live.ended)
            else:
                self._ends.finish(attempt, live.ended)
        else:
            self._repeat_commands(attempt)

    def _repeat_commands(self, attempt: Attempt) -> None:
        """Say again what the broken stream may have lost of an attempt that lives; plans and limits come anyway."""
        for forced in attempt.forced:
            self._state.outbox.forced(forced)
        if attempt.cancelling:
            self._state.outbox.cancel(attempt.key)
