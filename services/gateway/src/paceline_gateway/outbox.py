"""Commands waiting for the session's writer: one message carries all that gathered while the last one was written."""

import asyncio

from paceline.router.v1 import generation_pb2, router_pb2

# Well below what a gRPC server takes in one message; a single larger submit travels alone.
_MAX_BATCH_BYTES = 1_000_000


class Outbox:
    """Gathers commands. It is bounded by the live requests: each has at most one command of a kind in it."""

    def __init__(self) -> None:
        self._submits: dict[int, router_pb2.SessionSubmit] = {}
        self._attaches: dict[int, router_pb2.SessionAttach] = {}
        self._cancels: dict[int, None] = {}
        self._credits: dict[int, int] = {}
        self._wake = asyncio.Event()

    def submit(self, stream_id: int, spec: generation_pb2.GenerationSpec, token_limit: int) -> None:
        """A new request."""
        self._submits[stream_id] = router_pb2.SessionSubmit(
            stream_id=stream_id, spec=spec, token_limit=token_limit
        )
        self._wake.set()

    def attach(self, stream_id: int, request_id: str, from_index: int, token_limit: int) -> None:
        """Go on with a request."""
        self._attaches[stream_id] = router_pb2.SessionAttach(
            stream_id=stream_id, request_id=request_id, from_index=from_index, token_limit=token_limit
        )
        self._wake.set()

    def cancel(self, stream_id: int) -> None:
        """End a request."""
        self._cancels[stream_id] = None
        self._wake.set()

    def credit(self, stream_id: int, token_limit: int) -> None:
        """Let a request send more; the newest bound replaces one that still waits."""
        self._credits[stream_id] = token_limit
        self._wake.set()

    async def next_message(self) -> router_pb2.SessionRequest:
        """Wait for commands, and take as many as fit into one message."""
        while True:
            await self._wake.wait()
            message = self._take()
            if message is not None:
                return message
            self._wake.clear()

    def _take(self) -> router_pb2.SessionRequest | None:
        batch = router_pb2.SessionBatch()
        size_bytes = 0
        while self._submits:
            stream_id, submit = next(iter(self._submits.items()))
            size_bytes += submit.ByteSize()
            if batch.submits and size_bytes > _MAX_BATCH_BYTES:
                # The rest must not overtake its own submits.
                return router_pb2.SessionRequest(batch=batch)
            batch.submits.append(self._submits.pop(stream_id))
        batch.attaches.extend(self._attaches.values())
        batch.cancels.extend(router_pb2.SessionCancel(stream_id=stream_id) for stream_id in self._cancels)
        if self._credits:
            batch.credits.stream_ids.extend(self._credits)
            batch.credits.token_limits.extend(self._credits.values())
        if not (batch.submits or batch.attaches or batch.cancels or self._credits):
            return None
        self._attaches.clear()
        self._cancels.clear()
        self._credits.clear()
        return router_pb2.SessionRequest(batch=batch)
