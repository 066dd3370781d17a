"""The session with one scheduler: dialled, kept, and dialled again. Commands are batched per turn of the
event loop."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

import grpc

from paceline.common.v1 import attempt_pb2, estimate_pb2
from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from paceline_router.clock import Clock
from paceline_router.engine import Engine
from paceline_runtime.errors import Reason
from paceline_runtime.status import from_rpc_error

log = logging.getLogger(__name__)

MAX_COMMANDS_BYTES: Final = 1024 * 1024
"""Submits of one message to a scheduler, about; far below what a message may have."""

Dial = Callable[[str], grpc.aio.Channel]


class LinkState(Enum):
    """Where the session stands."""

    CONNECTING = "connecting"
    OPEN = "open"
    FENCED = "fenced"
    CLOSED = "closed"


class LinkEvents(Protocol):
    """Who hears what a scheduler says."""

    def on_hello_ack(self, link: "SchedulerLink", ack: scheduler_pb2.HelloAck) -> None:
        """The session is open, or the engine came back in a new incarnation."""
        ...

    def on_update(self, link: "SchedulerLink", update: scheduler_pb2.Update) -> None:
        """Acceptances, tokens, ends, load."""
        ...

    def on_broken(self, link: "SchedulerLink", reason: str) -> None:
        """The session ended; it is being dialled again."""
        ...


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How to dial and when to give up on a silent session."""

    redial_min_s: float
    redial_max_s: float
    heartbeat_lost_s: float


class SchedulerLink:
    """One scheduler. `engine` is the one behind it, once known; `broken_ms` is since when the session is
    down."""

    def __init__(
        self,
        endpoint: str,
        dial: Dial,
        hello: Callable[[], scheduler_pb2.Hello],
        events: LinkEvents,
        settings: LinkSettings,
        clock: Clock,
    ) -> None:
        self.endpoint = endpoint
        self.state = LinkState.CONNECTING
        self.engine: Engine | None = None
        self.scheduler_id = ""
        self.broken_ms: float | None = clock.now_ms()
        self.problem = ""
        self._hello = hello
        self._events = events
        self._settings = settings
        self._clock = clock
        self._channel = dial(endpoint)
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)
        self._submits: list[scheduler_pb2.Submit] = []
        self._cancels: list[int] = []
        self._releases: list[int] = []
        self._credits: dict[int, int] = {}
        self._republishes: dict[int, int] = {}
        self._move_outs: list[int] = []
        self._forced: list[attempt_pb2.ForcedTokens] = []
        self._moved: list[int] = []
        self._reestimates: dict[int, scheduler_pb2.Reestimate] = {}
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()

    @property
    def open(self) -> bool:
        """True while commands reach the scheduler."""
        return self.state is LinkState.OPEN

    # Commands. While the session is down they are dropped: what matters is said again after the next
    # HelloAck.

    def submit(self, submit: scheduler_pb2.Submit) -> None:
        """Start an attempt."""
        if self.open:
            self._submits.append(submit)
            self._wake.set()

    def cancel(self, key: int) -> None:
        """End an attempt; its AttemptEnded confirms."""
        if self.open:
            self._cancels.append(key)
            self._wake.set()

    def release(self, key: int) -> None:
        """Let an ended attempt be forgotten."""
        if self.open:
            self._releases.append(key)
            self._wake.set()

    def credit(self, key: int, token_limit: int) -> None:
        """Let an attempt generate up to an index."""
        if self.open:
            self._credits[key] = token_limit
            self._wake.set()

    def reestimate(
        self,
        key: int,
        estimate: estimate_pb2.LengthEstimate | None = None,
        forecast: estimate_pb2.TaskForecast | None = None,
        *,
        call_left_ms: float = 0.0,
        task_left_ms: float = 0.0,
    ) -> None:
        """Plan an attempt by a better estimate, or by what its task still needs and the time that is left of call and
        task; 0: unchanged."""
        if self.open:
            known = self._reestimates.setdefault(key, scheduler_pb2.Reestimate(attempt_key=key))
            if estimate is not None:
                known.estimate.CopyFrom(estimate)
            if forecast is not None:
                known.task_forecast.CopyFrom(forecast)
            known.task_call_budget_ms = call_left_ms or known.task_call_budget_ms
            known.task_left_ms = task_left_ms or known.task_left_ms
            self._wake.set()

    def republish(self, key: int, from_index: int) -> None:
        """Ask for tokens again."""
        if self.open:
            self._republishes[key] = from_index
            self._wake.set()

    def move_out(self, key: int) -> None:
        """Ask for a ticket for the KV of an attempt."""
        if self.open:
            self._move_outs.append(key)
            self._wake.set()

    def forced(self, forced: attempt_pb2.ForcedTokens) -> None:
        """Give an attempt that awaits them further ids."""
        if self.open:
            self._forced.append(forced)
            self._wake.set()

    def moved(self, key: int) -> None:
        """Stop an attempt for good, because another one takes over; its AttemptEnded MOVED confirms."""
        if self.open:
            self._moved.append(key)
            self._wake.set()

    async def run(self) -> None:
        """Keep the session, until cancelled or fenced off."""
        pause_s = self._settings.redial_min_s
        try:
            while self.state is not LinkState.FENCED:
                opened = await self._session()
                pause_s = (
                    self._settings.redial_min_s if opened else min(2 * pause_s, self._settings.redial_max_s)
                )
                await asyncio.sleep(pause_s)
        finally:
            self.state = LinkState.CLOSED if self.state is not LinkState.FENCED else self.state
            await self._channel.close()

    async def _session(self) -> bool:
        """One session from dial to break. True if it was opened, and failed by no fault of ours."""
        opened, failed, reason = False, False, "the scheduler closed the session"
        call: Any = self.stub.Session()
        writer: asyncio.Task[None] | None = None
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._settings.heartbeat_lost_s):
                await call.write(scheduler_pb2.SessionRequest(hello=self._hello()))
                first = await call.read()
            if first is grpc.aio.EOF or not first.HasField("hello_ack"):
                reason = "the scheduler did not answer the hello"
            else:
                opened = True
                self._open()
                writer = asyncio.create_task(self._write(call))
                watch = asyncio.create_task(self._watch(call))
                await self._greeted(call, first.hello_ack)
                await self._read(call)
        except TimeoutError:
            reason = f"no answer to the hello within {self._settings.heartbeat_lost_s:g} s"
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            reason = failure.message
            if failure.reason is Reason.FENCED:
                self.state = LinkState.FENCED
                log.error(
                    "fenced off by a scheduler: a newer life of this router is at work", extra=self._where()
                )
        except asyncio.CancelledError:
            # A call that is cancelled under us reads as our own cancellation; only the latter is passed on.
            task = asyncio.current_task()
            if not call.done() or (task is not None and task.cancelling()):
                raise
            reason = "silent for too long"
        except Exception:
            # A defect in what a message set off must not end the link for good: dial again, and compare anew.
            failed, reason = True, "a message could not be carried out"
            log.exception(reason, extra=self._where())
        finally:
            call.cancel()
            self._broken(opened, reason)
            tasks = [task for task in (writer, watch) if task is not None]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        return opened and not failed

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            self._heard.set()
            if response.HasField("update"):
                self._events.on_update(self, response.update)
            elif response.HasField("hello_ack"):
                await self._greeted(call, response.hello_ack)

    async def _greeted(self, call: Any, ack: scheduler_pb2.HelloAck) -> None:
        """Pass an ack on once all of its parts are here: what it does not list counts as lost."""
        while ack.more:
            response = await call.read()
            if response is grpc.aio.EOF or not response.HasField("hello_ack"):
                log.warning("a scheduler left its hello unfinished", extra=self._where())
                call.cancel()
                return
            self._heard.set()
            ack.live.extend(response.hello_ack.live)
            ack.more = response.hello_ack.more
        self._events.on_hello_ack(self, ack)

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await call.write(scheduler_pb2.SessionRequest(commands=self._take_commands()))
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The reader sees the same break, and says why.
            call.cancel()

    async def _watch(self, call: Any) -> None:
        """Ends a session that fell silent: load reports are its heartbeat."""
        while True:
            self._heard.clear()
            try:
                async with asyncio.timeout(self._settings.heartbeat_lost_s):
                    await self._heard.wait()
            except TimeoutError:
                log.warning("a scheduler fell silent", extra=self._where())
                call.cancel()
                return
            await asyncio.sleep(self._settings.heartbeat_lost_s / 4)

    def _take_commands(self) -> scheduler_pb2.Commands:
        """What gathered, in messages of a bounded size; what is about an attempt stays behind its submit."""
        size_bytes = 0
        for place, submit in enumerate(self._submits):
            size_bytes += submit.ByteSize()
            if place and size_bytes > MAX_COMMANDS_BYTES:
                first, self._submits = self._submits[:place], self._submits[place:]
                self._wake.set()
                return scheduler_pb2.Commands(submits=first)
        commands = scheduler_pb2.Commands(
            submits=self._submits,
            cancels=self._cancels,
            releases=self._releases,
            credits=[attempt_pb2.Credit(attempt_key=k, token_limit=n) for k, n in self._credits.items()],
            republishes=[
                attempt_pb2.Republish(attempt_key=k, from_index=i) for k, i in self._republishes.items()
            ],
            reestimates=self._reestimates.values(),
            move_outs=self._move_outs,
            forced=self._forced,
            moved=self._moved,
        )
        self._clear()
        return commands

    def _clear(self) -> None:
        self._submits, self._cancels, self._releases = [], [], []
        self._credits, self._republishes, self._reestimates = {}, {}, {}
        self._move_outs, self._forced, self._moved = [], [], []

    def _open(self) -> None:
        self._clear()
        self._wake.clear()
        self.state = LinkState.OPEN
        self.broken_ms = None
        self.problem = ""

    def _broken(self, opened: bool, reason: str) -> None:
        self.problem = reason
        self._clear()
        if self.state is LinkState.OPEN:
            self.state = LinkState.CONNECTING
        if opened or self.broken_ms is None:
            self.broken_ms = self._clock.now_ms()
        if opened:
            log.warning("session with a scheduler ended", extra={**self._where(), "reason": reason})
            self._events.on_broken(self, reason)

    def _where(self) -> dict[str, str]:
        return {"scheduler_endpoint": self.endpoint, "scheduler_id": self.scheduler_id}
