"""The scheduler's loop: what happens when.

Everything runs on one event loop and is driven by events. Commands of routers and reports of the executor change the
live table as they come, and mark it dirty; at the end of the turn in which they came there is one update to each router
and, in the turn after it so that tokens need not wait for planning, one plan and one batch of commands to the executor.
Besides, a timer tells load and expires what waited too long.
"""

import asyncio
import logging

from opentelemetry.trace import Tracer

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.batch.policy import BatchPolicy
from paceline_core.batch.table import LiveTable
from paceline_core.engine_model import EngineModelFitter
from paceline_core.tracker import SloTracker
from paceline_runtime.errors import PacelineError, Reason, invalid
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.spans import OpenSpans
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.config import SchedulerConfig
from paceline_scheduler.ends import Ends
from paceline_scheduler.intake import Intake
from paceline_scheduler.load import LoadReporter
from paceline_scheduler.metrics import SchedulerMetrics
from paceline_scheduler.outbox import CommandOutbox
from paceline_scheduler.planner import Planner
from paceline_scheduler.recovery import Recovery
from paceline_scheduler.reports import Reports
from paceline_scheduler.session import RouterSession, SessionRegistry
from paceline_scheduler.shedding import Shedding
from paceline_scheduler.state import SchedulerState, unix_ms
from paceline_scheduler.tenants import Tenants

log = logging.getLogger(__name__)

_LOAD_SHARE = 20
"""Load reports take at most one part in so many of the loop's time."""


class SchedulerLoop:
    """One engine's scheduler, without its streams: those call it, and carry what it leaves in the outboxes."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: BatchPolicy,
        instruments: Instruments | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.started_unix_ms = unix_ms()
        table = LiveTable[Attempt]()
        self.state = SchedulerState(
            config=config,
            table=table,
            tracker=SloTracker(),
            fitter=EngineModelFitter(),
            tenants=Tenants(table, config.tenant_shares),
            sessions=SessionRegistry(config.session_backlog_bytes),
            outbox=CommandOutbox(),
            mark_dirty=self._mark_dirty,
            mark_output=self._schedule,
            spans=OpenSpans("paceline.attempt", tracer),
        )
        self.planner = Planner(self.state, policy, self.started_unix_ms)
        self._metrics = (
            None if instruments is None else SchedulerMetrics(instruments, self.state, policy.name)
        )
        self.ends = Ends(self.state)
        self.shedding = Shedding(self.state, self.ends)
        self.intake = Intake(self.state, self.ends, policy.estimates)
        self.loads = LoadReporter(self.state)
        self._reports = Reports(self.state, self.ends, self.planner)
        self._recovery = Recovery(self.state, self.ends, self.intake, self._reports, self.planner)
        self._loop = asyncio.get_running_loop()
        self._dirty = False
        self._scheduled = False
        self._graces: dict[str, asyncio.TimerHandle] = {}
        self._ended = asyncio.Event()
        self.on_engine_change = asyncio.Event()
        """Set whenever the engine comes or goes."""

    # --- a turn ---

    def _mark_dirty(self) -> None:
        self._dirty = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Let the routers' streams take what is there, then plan."""
        self._scheduled = False
        if self.state.sessions.flush():
            self._loop.call_soon(self._plan)  # behind the writers that were just woken
        else:
            self._plan()

    def _plan(self) -> None:
        """Plan if anything happened, and let the executor's stream take what is there."""
        state = self.state
        if self._dirty:
            self._dirty = False
            if state.engine.attached:
                plan = self.planner.plan(self.shedding.shed)
                if plan is not None:
                    state.outbox.plan(plan)
                if self._metrics is not None:
                    self._metrics.planned(self.planner.record.plan_ms, sent=plan is not None)
            self._ended.set()
        state.outbox.flush()

    async def run_timer(self) -> None:
        """Load reports, risks and time-outs, until cancelled. One wake-up per load interval."""
        interval_s = self.state.config.load_interval_ms / 1000
        pause_s = interval_s
        while True:
            await asyncio.sleep(pause_s)
            began = self._loop.time()
            self.ends.expire(self.state.now_ms())
            self.shedding.look(self.state.now_ms())
            if self._metrics is not None:
                self._metrics.flush()
            if len(self.state.sessions):
                self.loads.tell_risks()
                self._tell_load()
            self._schedule()
            # With very many requests the curves take milliseconds: tell them less often than keep the engine waiting.
            pause_s = max(interval_s, _LOAD_SHARE * (self._loop.time() - began))

    def _tell_load(self) -> None:
        load = self.loads.load()
        for session in self.state.sessions.all():
            session.load(load)
        self._schedule()

    # --- the executor: EngineEvents ---

    def attached(self, attached: executor_pb2.Attached) -> None:
        """The link has a stream."""
        greet = self._recovery.attached(attached)
        for attempt in self.state.table:
            if self.state.sessions.get(attempt.router_id) is None:
                self._start_grace(attempt.router_id)
        if greet:
            for session in self.state.sessions.all():
                session.hello_ack(self.hello_ack(session.router_id))
        self.on_engine_change.set()
        self._schedule()

    def report(self, report: executor_pb2.Report) -> None:
        """The engine reports."""
        self._reports.report(report)

    def detached(self, cause: str) -> None:
        """The stream broke. Nothing is lost yet."""
        log.warning("the executor's stream broke", extra={"cause": cause})
        self.state.engine.attached = False
        self.planner.forget()
        self._tell_load()

    def out_of_reach(self, cause: str) -> None:
        """No stream for too long."""
        self._recovery.lost(cause)
        self._tell_load()
        self.on_engine_change.set()

    def fenced(self, cause: str) -> None:
        """A newer scheduler has the engine: its routers must go there."""
        log.error("fenced off by a newer scheduler", extra={"cause": cause})
        self.state.engine.attached = False
        self.state.engine.lost = True
        self.state.draining = True
        for session in self.state.sessions.all():
            # Not FENCED: to a router that says that a newer life of its own is at work.
            session.close(PacelineError(Reason.UNAVAILABLE, "a newer scheduler has the engine"))
        self.on_engine_change.set()

    # --- routers ---

    def open_session(self, hello: scheduler_pb2.Hello) -> RouterSession:
        """A router says hello. Raises PacelineError (FENCED, INVALID_ARGUMENT)."""
        if not hello.router_id:
            raise invalid("a hello needs a router_id", field="router_id")
        state = self.state
        others = [adoption for adoption in hello.adopt if adoption.router_id != hello.router_id]
        for adoption in others:  # all or nothing: a session that is refused must not be left open
            state.sessions.check(adoption.router_id, adoption.fencing_token)
        session = state.sessions.open(hello.router_id, hello.fencing_token)
        for adoption in others:
            state.sessions.adopt(adoption.router_id, adoption.fencing_token)
            self._stop_grace(adoption.router_id)
            for attempt in state.table:
                if attempt.router_id == adoption.router_id:
                    state.table.change_router(attempt, hello.router_id)
        self._stop_grace(hello.router_id)
        session.hello_ack(self.hello_ack(hello.router_id))
        self._schedule()
        log.info("a router's session opened", extra={"router_id": hello.router_id})
        return session

    def commands(self, session: RouterSession, commands: scheduler_pb2.Commands) -> None:
        """A router asks. What a session says after it was closed does not count."""
        if not session.closed.done():
            self.intake.commands(session, commands)

    def close_session(self, session: RouterSession) -> None:
        """The stream ended: the router has a while to come back."""
        if self.state.sessions.remove(session):
            self._start_grace(session.router_id)
            log.info("a router's session ended", extra={"router_id": session.router_id})

    def hello_ack(self, router_id: str) -> scheduler_pb2.HelloAck:
        """The engine, and what lives in it of this router."""
        state = self.state
        engine = state.engine
        ack = scheduler_pb2.HelloAck(
            scheduler_id=state.config.scheduler_id,
            executor_endpoint=state.config.executor_endpoint or state.config.executor,
            load=self.loads.load(),
        )
        if engine.attached and engine.identity is not None:
            ack.identity.CopyFrom(engine.identity)
            ack.capabilities.CopyFrom(engine.capabilities)
        for attempt in state.table:
            if attempt.router_id == router_id:
                ack.live.add(
                    spec=attempt.spec(),
                    context=attempt.router_context,
                    router_id=router_id,
                    state=attempt_pb2.RequestState.ValueType(int(state.table.state[attempt.row])),
                    prompt_ids=attempt.prompt_ids,
                    output_tokens=int(state.table.generated[attempt.row]),
                    ended=attempt.ended,
                )
        return ack

    def _start_grace(self, router_id: str) -> None:
        if router_id not in self._graces:
            self._graces[router_id] = self._loop.call_later(
                self.state.config.router_grace_s, self._router_gone, router_id
            )

    def _stop_grace(self, router_id: str) -> None:
        handle = self._graces.pop(router_id, None)
        if handle is not None:
            handle.cancel()

    def _router_gone(self, router_id: str) -> None:
        """The router did not come back: nobody waits for its requests."""
        self._graces.pop(router_id, None)
        mine = [a for a in self.state.table if a.router_id == router_id]
        if mine:
            log.warning("a router did not come back", extra={"router_id": router_id, "attempts": len(mine)})
        for attempt in mine:
            attempt.orphan = True
            if attempt.ended is not None:
                self.ends.release(attempt.key)
            else:
                self.ends.cancel(attempt)
        self._schedule()

    # --- the end ---

    async def drain(self, timeout_s: float) -> int:
        """Take nothing new, and wait for what lives; returns how many still do."""
        self.state.draining = True
        self._tell_load()
        if timeout_s > 0:
            try:
                async with asyncio.timeout(timeout_s):
                    while self.state.table.live:
                        self._ended.clear()
                        await self._ended.wait()
            except TimeoutError:
                log.warning("drain timed out", extra={"live": self.state.table.live})
        return self.state.table.live

    def close(self) -> None:
        """End all sessions and timers."""
        for handle in self._graces.values():
            handle.cancel()
        self._graces.clear()
        for session in self.state.sessions.all():
            session.close(PacelineError(Reason.UNAVAILABLE, "the scheduler shuts down"))
