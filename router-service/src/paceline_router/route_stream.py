"""RouteStream: decisions in batches, in the order in which they were asked for.

What a client sends waits in a bounded inbox. Each turn takes a batch from there, asks the predictor once, and decides
slice by slice, each decision seeing those before it; between slices the event loop serves others. A client that does
not read its decisions gets none made, and soon is not read either.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from paceline.router.v1 import router_pb2
from paceline_core import lengths
from paceline_router.clock import Clock
from paceline_router.decisions import Decisions, Question, refused
from paceline_router.open_decisions import OpenDecisions, StreamDecisions
from paceline_router.placement import Placer
from paceline_router.validation import REQUEST_ID
from paceline_runtime.errors import PacelineError, Reason, invalid

log = logging.getLogger(__name__)

BATCH: Final = 256
"""Specs of one turn, at most: one question to the predictor."""
SLICE: Final = 32
"""Decisions in one go: a few milliseconds of the event loop at 512 engines."""
MAX_WAITING: Final = 4096
"""Specs and outcomes of one stream that wait for their turn; over it the stream is not read. One message may go over
it: the size of a message has a limit of its own."""


class RouteStreams:
    """All streams of this router."""

    def __init__(
        self, decisions: Decisions, open_decisions: OpenDecisions, placer: Placer, clock: Clock
    ) -> None:
        self._decisions = decisions
        self._open = open_decisions
        self._placer = placer
        self._clock = clock
        self._inboxes: set[_Inbox] = set()
        self._leaving = False

    def leave(self) -> None:
        """The router is going: each stream ends when the turn that it is at is answered."""
        self._leaving = True
        for inbox in self._inboxes:
            inbox.wake()

    async def serve(
        self, messages: AsyncIterator[router_pb2.RouteStreamRequest], caller: str
    ) -> AsyncGenerator[router_pb2.RouteStreamResponse, None]:
        """Answer until the client has said everything and heard everything. Raises DRAINING when the router goes."""
        inbox, stream = _Inbox(), self._open.open()
        self._inboxes.add(inbox)
        reader = asyncio.create_task(inbox.fill(messages))
        reader.add_done_callback(lambda _: inbox.wake())
        try:
            while True:
                await inbox.wait()
                if self._leaving:
                    raise PacelineError(
                        Reason.DRAINING, "this router is going; open the stream again in a moment"
                    )
                specs, outcomes = inbox.take(BATCH)
                early = self._open.ended(stream, outcomes)
                items = await self._prepared(specs, caller)
                for start in range(0, len(items), SLICE):
                    decisions = self._decide(items[start : start + SLICE], stream)
                    yield router_pb2.RouteStreamResponse(decisions=decisions)
                # An outcome may come with, or right behind, the spec that it is about.
                if unknown := self._open.ended(stream, early):
                    self._open.unknown(len(unknown))
                if reader.done() and not inbox.waiting:
                    reader.result()
                    return
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()) is not None:
                log.debug("reading a stream of decisions ended", exc_info=error)
            self._inboxes.discard(inbox)
            self._open.close(stream)

    async def _prepared(self, specs: Sequence[router_pb2.RouteSpec], caller: str) -> "list[_Item]":
        """Each spec with what a decision needs, or with the error that it deserves."""
        items = [self._item(spec, caller) for spec in specs]
        asking = [item for item in items if item.question is not None]
        cdfs = await self._decisions.length_cdfs(
            [item.question for item in asking if item.question is not None]
        )
        for item, found in zip(asking, cdfs, strict=True):
            item.found = found
        return items

    def _item(self, spec: router_pb2.RouteSpec, caller: str) -> "_Item":
        try:
            if not REQUEST_ID.fullmatch(spec.request_id):
                message = "request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
                raise invalid(message, field="request_id")
            return _Item(spec.request_id, self._decisions.checked(spec, caller))
        except PacelineError as error:
            return _Item(spec.request_id, None, error)

    def _decide(self, items: "Sequence[_Item]", stream: StreamDecisions) -> list[router_pb2.Decision]:
        """Decisions at one instant, in order."""
        began, now_ms = time.perf_counter(), self._clock.now_ms()
        placed: Counter[str] = Counter()
        decisions = []
        for item in items:
            try:
                decisions.append(self._one(item, stream, now_ms, placed))
            except PacelineError as error:
                decisions.append(refused(item.request_id, error))
            except Exception:
                # A defect in the answer to one spec must not cost the client all others.
                log.exception("a decision failed unexpectedly", extra={"request_id": item.request_id})
                message = "the router failed to decide; its log has more"
                decisions.append(refused(item.request_id, PacelineError(Reason.INTERNAL, message)))
        self._placer.count(placed, (time.perf_counter() - began) / len(items))
        return decisions

    def _one(
        self, item: "_Item", stream: StreamDecisions, now_ms: float, placed: Counter[str]
    ) -> router_pb2.Decision:
        if isinstance(item.found, PacelineError):
            raise item.found
        assert item.question is not None
        assert item.found is not None
        self._open.check_room(stream, item.request_id)
        request = self._decisions.view(item.question, item.found)
        engine, placement, _ = self._placer.choose(request, now_ms)
        decision = self._decisions.answer(item.question, engine, placement)
        if engine is not None:
            self._open.add(stream, engine, request, item.question.query, now_ms)
            placed[engine.engine_id] += 1
        return decision


class _Inbox:
    """Messages of one stream that wait for their turn, and whether there is something to do about them."""

    def __init__(self) -> None:
        self._messages: deque[_Message] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self.waiting = 0
        """Specs and outcomes."""

    async def fill(self, messages: AsyncIterator[router_pb2.RouteStreamRequest]) -> None:
        """Take messages in as they come, as long as there is room; ends with the client's last one."""
        async for message in messages:
            size = len(message.specs) + len(message.outcomes)
            if not size:
                continue
            self._messages.append(_Message(iter(message.specs), message.outcomes))
            self.waiting += size
            self._wake.set()
            while self.waiting >= MAX_WAITING:
                self._room.clear()
                await self._room.wait()

    def wake(self) -> None:
        """Look, whatever waits."""
        self._wake.set()

    async def wait(self) -> None:
        """Until a message waits, or somebody called `wake`."""
        await self._wake.wait()

    def take(self, most: int) -> tuple[list[router_pb2.RouteSpec], list[router_pb2.RouteOutcome]]:
        """Specs, at most so many, in order, and the outcomes of all messages that were begun."""
        specs: list[router_pb2.RouteSpec] = []
        outcomes: list[router_pb2.RouteOutcome] = []
        while self._messages and len(specs) < most:
            message = self._messages[0]
            outcomes += message.outcomes
            message.outcomes = ()
            for spec in message.specs:
                specs.append(spec)
                if len(specs) == most:
                    break
            else:
                self._messages.popleft()
        self.waiting -= len(specs) + len(outcomes)
        self._room.set()
        if not self._messages:
            self._wake.clear()
        return specs, outcomes


@dataclass(slots=True)
class _Message:
    specs: Iterator[router_pb2.RouteSpec]
    outcomes: Sequence[router_pb2.RouteOutcome]
    """Emptied when they were taken."""


@dataclass(slots=True)
class _Item:
    request_id: str
    question: Question | None
    """None: the spec is bad, and `found` says how."""
    found: lengths.FloatArray | PacelineError | None = None
