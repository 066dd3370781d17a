"""The pulling side of PullState: KV of one attempt from another executor, checked before an engine sees it."""

import asyncio
import zlib

import grpc

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2, executor_pb2_grpc
from paceline_executor.contract import Capabilities
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.status import from_rpc_error
from paceline_runtime.tls import TlsConfig

MAX_CHUNK_BYTES = 1 << 20
# Ids, headers and what an engine stores beside the KV of a position.
_OVERHEAD_FACTOR = 1.25
_OVERHEAD_BYTES = 1 << 20


class PullError(Exception):
    """A state could not be had; `reason` is UPPER_SNAKE, for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class StatePuller:
    """Pulls states for one engine."""

    def __init__(
        self,
        own: Capabilities,
        *,
        config: ChannelConfig | None = None,
        tls: TlsConfig | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        self._own = own
        self._config = config
        self._tls = tls
        self._timeout_s = timeout_s
        kv_bytes = own.max_context_tokens * max(own.kv_bytes_per_token, 64)
        self._max_bytes = int(kv_bytes * _OVERHEAD_FACTOR) + _OVERHEAD_BYTES

    async def pull(self, ticket: attempt_pb2.KvTicket) -> bytes:
        """The state a ticket stands for, as the engine that made it packed it. Raises PullError."""
        request = executor_pb2.PullStateRequest(
            ticket=ticket.token,
            build=self._own.build,
            model_hash=self._own.model_hash,
            kv_type=self._own.kv_type,
            max_context_tokens=self._own.max_context_tokens,
        )
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                channel(ticket.endpoint, self._config, tls=self._tls) as connection,
            ):
                call = executor_pb2_grpc.ExecutorServiceStub(connection).PullState(request)
                return await self._receive(call)
        except TimeoutError:
            raise PullError(
                "TIMEOUT", f"no whole state from {ticket.endpoint} in {self._timeout_s:g} s"
            ) from None
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            raise PullError(failure.reason.value, failure.message) from error

    async def _receive(
        self, call: "grpc.aio.UnaryStreamCall[executor_pb2.PullStateRequest, executor_pb2.PullStateResponse]"
    ) -> bytes:
        header: executor_pb2.StateHeader | None = None
        data = bytearray()
        async for part in call:
            if header is None:
                if part.WhichOneof("part") != "header":
                    raise PullError("PROTOCOL", "the stream does not begin with a header")
                header = part.header
                self._check(header)
                continue
            data += part.chunk
            if len(part.chunk) > MAX_CHUNK_BYTES or len(data) > header.size_bytes:
                raise PullError("PROTOCOL", "more bytes came than were announced")
        if header is None or len(data) != header.size_bytes:
            raise PullError("PROTOCOL", "the stream ended early")
        whole = bytes(data)
        if await asyncio.to_thread(zlib.crc32, whole) != header.crc32:
            raise PullError("CRC_MISMATCH", "the bytes were damaged on the way")
        return whole

    def _check(self, header: executor_pb2.StateHeader) -> None:
        if header.size_bytes > self._max_bytes:
            raise PullError("TOO_LARGE", f"{header.size_bytes} bytes; at most {self._max_bytes} are taken")
        if header.positions > self._own.max_context_tokens:
            raise PullError("TOO_LARGE", f"{header.positions} positions, more than a context here")
        if len(header.token_ids) != 4 * header.positions:
            raise PullError("PROTOCOL", "the header's ids do not match its positions")
