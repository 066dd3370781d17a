"""One control stream: attach, then commands in and reports out until either side ends it.

The engine never waits for the stream. Its events collect in its outbox; the sender turns all that are there into as
few messages as it can. A scheduler that does not read blocks the sender, and after a while the engine is paused, so
that what collects is bounded.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace

from opentelemetry.util.types import AttributeValue

from paceline.executor.v1 import executor_pb2
from paceline_executor.contract import (
    ENGINE_FAILED,
    AttemptEnded,
    EndReason,
    Engine,
    EngineError,
    Event,
    Ids,
    Plan,
)
from paceline_executor.from_proto import ids_of, plan_of, spec_of
from paceline_executor.landing import Landing
from paceline_executor.report import reports_of
from paceline_executor.to_proto import ended_message, kv_message
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.spans import OpenSpans

_log = logging.getLogger(__name__)

Write = Callable[[executor_pb2.RunResponse], Awaitable[None]]


class RunSession:
    """Serves one stream. `endpoint` is where other executors pull state from."""

    def __init__(
        self,
        engine: Engine,
        landing: Landing,
        write: Write,
        *,
        endpoint: str,
        stall_pause_s: float,
        counters: Counter[str],
        spans: OpenSpans,
        count: Callable[[list[Event]], None] | None = None,
    ) -> None:
        self._engine = engine
        self._landing = landing
        self._write = write
        self._endpoint = endpoint
        self._stall_pause_s = stall_pause_s
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._fenced = asyncio.Event()
        self._ready = asyncio.Event()
        self._answers = executor_pb2.Report()
        """Tickets and refusals: what the session itself has to say."""
        self._plan: Plan | None = None
        self._paused = False
        self._counters = counters
        self._spans = spans
        self._count = count

    def fence(self) -> None:
        """A newer stream has the engine: end this one."""
        self._fenced.set()

    async def serve(
        self, attached: Iterable[executor_pb2.RunResponse], requests: AsyncIterator[executor_pb2.RunRequest]
    ) -> None:
        """Send the parts of `attached`, then serve until the peer ends. Raises FENCED when a newer stream took over."""
        for part in attached:
            await self._write(part)
        tasks = [
            asyncio.create_task(self._read(requests), name="run-reader"),
            asyncio.create_task(self._send(), name="run-sender"),
            asyncio.create_task(self._fenced.wait(), name="run-fence"),
        ]
        self._engine.events.on_event(self._wake)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not self._fenced.is_set():
                # A stream that took over has set its own.
                self._engine.events.on_event(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._fenced.is_set():
            raise PacelineError(Reason.FENCED, "a newer stream has taken the engine over")
        for task in done:
            task.result()

    # --- commands --------------------------------------------------------------------------------------------

    async def _read(self, requests: AsyncIterator[executor_pb2.RunRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("message") != "commands":
                raise PacelineError(Reason.INVALID_ARGUMENT, "after the attach only commands may come")
            if self._fenced.is_set():
                return
            await self._carry_out(request.commands)

    async def _carry_out(self, commands: executor_pb2.Commands) -> None:
        """In the order of the fields."""
        for add in commands.adds:
            await self._add(add)
        for key in commands.cancels:
            self._landing.cancel(key)
        for key in commands.releases:
            self._engine.release(key)
        for row in commands.republishes:
            self._engine.republish(row.attempt_key, row.from_index)
        for forced in commands.forced:
            self._landing.extend_forced(
                forced.attempt_key, forced.first_index, _ids(forced.ids, "forced"), final=forced.final
            )
        for key in commands.tickets:
            self._issue_ticket(key)
        if commands.HasField("plan"):
            self._adopt(commands.plan)

    async def _add(self, add: executor_pb2.AddAttempt) -> None:
        try:
            spec = spec_of(add)
        except EngineError as error:
            refusal = AttemptEnded(
                add.spec.attempt_key, EndReason.REJECTED, error_reason=error.reason, message=error.message
            )
            self._answers.ended.append(ended_message(refusal))
            self._ready.set()
            return
        self._spans.begin(spec.attempt_key, add.spec.traceparent, {names.ATTR_REQUEST_ID: spec.request_id})
        await self._landing.add(spec, add.spec.kv_ticket if add.spec.HasField("kv_ticket") else None)

    def _issue_ticket(self, attempt_key: int) -> None:
        answer = self._answers.tickets.add(attempt_key=attempt_key)
        try:
            ticket = self._engine.issue_ticket(attempt_key)
        except EngineError as error:
            answer.failure.reason = error.reason
            answer.failure.message = error.message
            answer.failure.retryable = error.retryable
        else:
            answer.ticket.endpoint = self._endpoint
            answer.ticket.token = ticket.token
            answer.ticket.positions = ticket.positions
            answer.ticket.size_bytes = ticket.size_bytes
        self._ready.set()

    def _adopt(self, message: executor_pb2.Plan) -> None:
        plan = plan_of(message)
        if plan.token_limits and len(plan.token_limits) != len(plan.attempt_keys):
            raise PacelineError(
                Reason.INVALID_ARGUMENT, "token_limits must be as long as attempt_keys, or empty"
            )
        self._plan = plan
        if not self._paused:
            self._engine.set_plan(plan)

    # --- reports ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Called by the engine, mostly from its own thread."""
        if threading.get_ident() == self._thread:
            self._ready.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ready.set)

    async def _send(self) -> None:
        while True:
            await self._ready.wait()
            if self._fenced.is_set():
                # What comes out now is for the stream that took over.
                return
            self._ready.clear()
            # Taken before anything is awaited: a stream that takes over meanwhile must find its own events there.
            events = self._engine.events.drain()
            answers = self._answers
            if answers.tickets or answers.ended:
                self._answers = executor_pb2.Report()
                await self._deliver(answers)
            if self._count is not None:
                self._count(events)
            self._end_spans(events)
            died = [e for e in events if isinstance(e, AttemptEnded) and e.error_reason == ENGINE_FAILED]
            for report in reports_of([event for event in events if event not in died] if died else events):
                if report.ended and not report.HasField("kv"):
                    # An idle engine makes no steps that would tell what the end has freed.
                    report.kv.CopyFrom(kv_message(self._engine.kv_use()))
                await self._deliver(report)
            if died:
                # Not the ends of requests: without a stream the scheduler takes them for lost, and they are replayed.
                raise PacelineError(Reason.UNAVAILABLE, f"the engine has failed: {died[0].message}")

    def _end_spans(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, AttemptEnded):
                what: dict[str, AttributeValue] = {
                    names.GEN_AI_FINISH_REASONS: [event.reason.value],
                    names.GEN_AI_INPUT_TOKENS: event.prompt_tokens,
                    names.GEN_AI_OUTPUT_TOKENS: event.output_tokens,
                }
                self._spans.end(event.attempt_key, what, error=event.message)

    async def _deliver(self, report: executor_pb2.Report) -> None:
        stall = self._loop.call_later(self._stall_pause_s, self._pause)
        try:
            await self._write(executor_pb2.RunResponse(report=report))
        finally:
            stall.cancel()
        if self._paused:
            self._resume()

    def _pause(self) -> None:
        if not self._fenced.is_set():
            self._paused = True
            self._counters["stall_pauses"] += 1
            self._engine.clear_plan()
            _log.warning("the scheduler does not read its reports: engine paused")

    def _resume(self) -> None:
        self._paused = False
        if self._plan is not None and not self._fenced.is_set():
            # What it said to evict was done, or was for a moment that has passed.
            self._engine.set_plan(replace(self._plan, evict=()))


def _ids(data: bytes, what: str) -> Ids:
    try:
        return ids_of(data)
    except EngineError as error:
        raise PacelineError(Reason.INVALID_ARGUMENT, f"{what}: {error.message}") from None
