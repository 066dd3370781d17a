"""One request on one stream: Generate and Attach."""

from collections.abc import AsyncGenerator

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2
from paceline_router.admission import Admission
from paceline_router.outlet import Outbox, Outlet, Row
from paceline_router.readers import Readers, leaving
from paceline_router.request import LiveRequest
from paceline_runtime.errors import ATTAINABLE_MS, PacelineError, reason_of

Event = generation_pb2.Accepted | generation_pb2.Tokens | generation_pb2.Finished


class SingleStreams:
    """Streams of one request each."""

    def __init__(self, admission: Admission, readers: Readers) -> None:
        self._admission = admission
        self._readers = readers

    async def generate(self, spec: generation_pb2.GenerationSpec, tenant: str) -> AsyncGenerator[Event, None]:
        """A new request. A refusal before acceptance is raised as PacelineError; later failures are the last
        event."""
        outbox = self._readers.outbox()
        outlets: list[Outlet] = []

        def read(request: LiveRequest) -> None:
            outlets.append(self._readers.attach(request, outbox, 1, 0, 0))

        try:
            await self._admission.submit(spec, tenant, read)
            async for event in _events(outbox):
                if isinstance(event, generation_pb2.Finished) and _refused(event, outlets[0].request):
                    raise _error(event.failure)
                yield event
        finally:
            self._close(outbox, outlets)

    async def attach(self, request_id: str, from_index: int, tenant: str) -> AsyncGenerator[Event, None]:
        """Go on with a request from a token index."""
        request = await self._readers.find(request_id, tenant, from_index)
        outbox = self._readers.outbox()
        outlets = [self._readers.attach(request, outbox, 1, from_index, 0)]
        try:
            async for event in _events(outbox):
                yield event
        finally:
            self._close(outbox, outlets)

    def _close(self, outbox: Outbox, outlets: list[Outlet]) -> None:
        for outlet in outlets:
            self._readers.detach(outlet)
        self._readers.close(outbox)


async def _events(outbox: Outbox) -> AsyncGenerator[Event, None]:
    while True:
        await outbox.wait()
        if outbox.leaving:
            raise leaving()
        delivery = outbox.take()
        for outlet in delivery.accepted:
            assert outlet.request.accepted is not None
            yield outlet.request.accepted
        for row in delivery.rows:
            yield _tokens(row)
        for outlet in delivery.finished:
            assert outlet.request.finished is not None
            yield outlet.request.finished
            return


def _tokens(row: Row) -> generation_pb2.Tokens:
    return generation_pb2.Tokens(
        first_index=row.first,
        token_ids=np.frombuffer(row.ids, "<i4").tolist(),
        text=row.text.decode(),
        text_lengths=np.frombuffer(row.lengths, "<u4").tolist(),
    )


def _refused(event: generation_pb2.Finished, request: LiveRequest) -> bool:
    return event.finish_reason == attempt_pb2.FINISH_REASON_REJECTED and request.accepted is None


def _error(failure: attempt_pb2.Failure) -> PacelineError:
    return PacelineError(
        reason_of(failure.reason),
        failure.message,
        retryable=failure.retryable,
        retry_after_ms=failure.retry_after_ms or None,
        metadata={ATTAINABLE_MS: f"{failure.attainable_ms:.0f}"} if failure.attainable_ms else None,
    )
