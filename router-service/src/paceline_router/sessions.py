"""The client session: many requests on one stream, each with its own id and credit.

Nobody ever stops reading: commands are carried out as they come, and what cannot be sent stays in the
requests' own outputs. A client that does not read runs out of credit, request by request.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Final

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_router.admission import Admission
from paceline_router.dispatch import Dispatcher
from paceline_router.lifecycle import Lifecycle, failure_of
from paceline_router.outlet import Delivery, Outlet
from paceline_router.readers import Readers, leaving
from paceline_router.request import LiveRequest
from paceline_runtime.errors import PacelineError, Reason, invalid

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 100_000
"""Streams of one session that have not been told their end."""


class ClientSession:
    """One session, from its first message to its break."""

    def __init__(
        self,
        admission: Admission,
        readers: Readers,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        tenant: str,
    ) -> None:
        self._admission = admission
        self._readers = readers
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._tenant = tenant
        self._outbox = readers.outbox()
        self._streams: dict[int, Outlet | None] = {}
        self._limits: dict[int, int] = {}
        self._cancelled: set[int] = set()
        self._refused: list[router_pb2.SessionFinished] = []
        self._admissions: set[asyncio.Task[None]] = set()

    async def serve(
        self, messages: AsyncIterator[router_pb2.SessionRequest]
    ) -> AsyncGenerator[router_pb2.SessionResponse, None]:
        """Carry out what comes in, and yield what goes out, until the client has said and heard everything."""
        reader = asyncio.create_task(self._read(messages))
        reader.add_done_callback(lambda _: self._outbox.wake())
        try:
            while True:
                await self._outbox.wait()
                if self._outbox.leaving:
                    raise leaving()
                response = self._response(self._outbox.take())
                if response is not None:
                    yield response
                if reader.done():
                    reader.result()
                    if not self._streams and not self._refused:
                        return
        finally:
            reader.cancel()
            for task in self._admissions:
                task.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()) is not None:
                log.debug("reading a session ended", exc_info=error)
            for outlet in list(self._streams.values()):
                if outlet is not None:
                    self._readers.detach(outlet)
            self._readers.close(self._outbox)

    async def _read(self, messages: AsyncIterator[router_pb2.SessionRequest]) -> None:
        first = True
        async for message in messages:
            kind = message.WhichOneof("message")
            if first and kind != "open":
                raise invalid("the first message of a session must be an open")
            first = False
            if kind == "batch":
                batch = message.batch
                for submit in batch.submits:
                    self._submit(submit)
                for attach in batch.attaches:
                    self._attach(attach)
                for cancel in batch.cancels:
                    self._cancel(cancel.stream_id)
                self._credit(batch.credits)
            elif kind == "submit":
                self._submit(message.submit)
            elif kind == "attach":
                self._attach(message.attach)
            elif kind == "cancel":
                self._cancel(message.cancel.stream_id)
            elif kind == "credits":
                self._credit(message.credits)

    def _submit(self, submit: router_pb2.SessionSubmit) -> None:
        stream_id = submit.stream_id
        self._claim(stream_id, submit.token_limit)

        def read(request: LiveRequest) -> None:
            limit = self._limits.get(stream_id, 0)
            self._streams[stream_id] = self._readers.attach(request, self._outbox, stream_id, 0, limit)
            if stream_id in self._cancelled:
                self._lifecycle.cancel(request, "by its client")

        async def admit() -> None:
            await self._admission.submit(submit.spec, self._tenant, read)

        self._start(stream_id, admit)

    def _attach(self, attach: router_pb2.SessionAttach) -> None:
        stream_id = attach.stream_id
        self._claim(stream_id, attach.token_limit)

        async def find() -> None:
            scope = self._admission.scope_of(self._tenant)
            request = await self._readers.find(attach.request_id, scope, attach.from_index)
            limit = self._limits.get(stream_id, 0)
            self._streams[stream_id] = self._readers.attach(
                request, self._outbox, stream_id, attach.from_index, limit
            )
            if stream_id in self._cancelled:
                self._lifecycle.cancel(request, "by its client")

        self._start(stream_id, find)

    def _cancel(self, stream_id: int) -> None:
        outlet = self._streams.get(stream_id)
        if outlet is not None:
            self._lifecycle.cancel(outlet.request, "by its client")
        elif stream_id in self._streams:
            self._cancelled.add(stream_id)

    def _credit(self, credits: router_pb2.SessionCredits) -> None:
        for stream_id, limit in zip(credits.stream_ids, credits.token_limits, strict=False):
            if stream_id not in self._streams:
                continue  # it ended while the credit was on its way
            self._limits[stream_id] = limit
            outlet = self._streams[stream_id]
            if outlet is not None and (limit == 0 or limit > outlet.limit > 0):
                outlet.limit = limit
                self._dispatcher.grant(outlet.request, force=True)
                outlet.notify(urgent=True)

    def _claim(self, stream_id: int, token_limit: int) -> None:
        if stream_id == 0 or stream_id in self._streams:
            problem = "is not a stream id" if stream_id == 0 else "is in use on this session"
            raise invalid(f"stream_id {stream_id} {problem}", field="stream_id")
        if len(self._streams) + len(self._refused) >= MAX_STREAMS:
            raise PacelineError(
                Reason.QUEUE_FULL, f"this session has {MAX_STREAMS} open streams, which is its limit"
            )
        self._streams[stream_id] = None
        if token_limit:
            self._limits[stream_id] = token_limit

    def _start(self, stream_id: int, work: Callable[[], Coroutine[None, None, None]]) -> None:
        async def guarded() -> None:
            try:
                await work()
            except PacelineError as error:
                self._refuse(stream_id, error)
            except Exception:
                log.exception("a stream cannot be begun", extra={"stream_id": stream_id})
                message = "the router failed to begin the stream; its log has more"
                self._refuse(stream_id, PacelineError(Reason.INTERNAL, message))

        task = asyncio.create_task(guarded())
        self._admissions.add(task)
        task.add_done_callback(self._admission_done)

    def _admission_done(self, task: asyncio.Task[None]) -> None:
        self._admissions.discard(task)

    def _refuse(self, stream_id: int, error: PacelineError) -> None:
        outlet = self._forget(stream_id)
        if outlet is not None:
            self._readers.detach(outlet)
        finished = generation_pb2.Finished(
            finish_reason=attempt_pb2.FINISH_REASON_REJECTED, failure=failure_of(error)
        )
        self._refused.append(router_pb2.SessionFinished(stream_id=stream_id, finished=finished))
        self._outbox.wake()

    def _forget(self, stream_id: int) -> Outlet | None:
        self._limits.pop(stream_id, None)
        self._cancelled.discard(stream_id)
        return self._streams.pop(stream_id, None)

    def _response(self, delivery: Delivery) -> router_pb2.SessionResponse | None:
        """One message of everything that is due; None when nothing is."""
        if not delivery and not self._refused:
            return None
        response = router_pb2.SessionResponse(finished=self._refused)
        self._refused = []
        for outlet in delivery.accepted:
            response.accepted.add(stream_id=outlet.stream_id, accepted=outlet.request.accepted)
        rows = delivery.rows
        if rows:
            tokens = response.tokens
            tokens.stream_ids.extend([row.outlet.stream_id for row in rows])
            tokens.first_indices.extend([row.first for row in rows])
            tokens.counts.extend([row.count for row in rows])
            tokens.payload.token_ids = b"".join([row.ids for row in rows])
            tokens.payload.text_lengths = b"".join([row.lengths for row in rows])
            tokens.payload.text = b"".join([row.text for row in rows])
        for outlet in delivery.finished:
            response.finished.add(stream_id=outlet.stream_id, finished=outlet.request.finished)
            self._forget(outlet.stream_id)
            self._readers.detach(outlet)
        return response
