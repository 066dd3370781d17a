"""Tickets for KV state, and the bytes a state travels in."""

import json
import secrets
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_executor.contract import EngineError, Ids

_MAGIC = b"PLKV\x01"
_HEADER = struct.Struct("<5sI")


class TicketBook:
    """Unguessable, short-lived, single-use tickets; a bounded number of them."""

    def __init__(self, capacity: int, ttl_s: float, clock_s: Callable[[], float]) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._clock_s = clock_s
        self._open: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        self._expire()
        return len(self._open)

    def issue(self, attempt_key: int) -> str:
        """A new ticket; raises `EngineError` TOO_MANY_TICKETS at the bound."""
        self._expire()
        if len(self._open) >= self._capacity:
            raise EngineError(
                "TOO_MANY_TICKETS", f"{self._capacity} tickets are open already", retryable=True
            )
        token = secrets.token_urlsafe(24)
        self._open[token] = (attempt_key, self._clock_s() + self._ttl_s)
        return token

    def redeem(self, token: str) -> int:
        """The attempt of a ticket, which is used up; raises `EngineError` TICKET_INVALID."""
        self._expire()
        entry = self._open.pop(token, None)
        if entry is None:
            raise EngineError("TICKET_INVALID", "the ticket is unknown, used or expired")
        return entry[0]

    def _expire(self) -> None:
        now = self._clock_s()
        while self._open and next(iter(self._open.values()))[1] <= now:
            self._open.popitem(last=False)


@dataclass(frozen=True)
class SequenceState:
    """KV of one sequence with all that decides whether another engine may use it."""

    build: str
    model_hash: str
    kv_type: str
    chunk_tokens: int
    prompt_tokens: int
    prefill_target: int
    """Positions that prefill chunks made; the others were decoded one by one."""
    ids: Ids
    """Ids of the positions held."""
    kv: NDArray[np.uint8]

    def pack(self) -> bytes:
        """Header, ids, KV bytes."""
        header = json.dumps(
            {
                "build": self.build,
                "model_hash": self.model_hash,
                "kv_type": self.kv_type,
                "chunk_tokens": self.chunk_tokens,
                "prompt_tokens": self.prompt_tokens,
                "prefill_target": self.prefill_target,
                "positions": len(self.ids),
            }
        ).encode()
        return b"".join(
            (_HEADER.pack(_MAGIC, len(header)), header, self.ids.astype("<i4").tobytes(), self.kv.tobytes())
        )

    @classmethod
    def unpack(cls, data: bytes) -> "SequenceState":
        """The reverse of `pack`; raises `EngineError` STATE_CORRUPT for anything else."""
        try:
            magic, header_bytes = _HEADER.unpack_from(data)
            if magic != _MAGIC:
                raise ValueError("it is not a KV state of this version")
            start = _HEADER.size + header_bytes
            header = json.loads(data[_HEADER.size : start])
            positions = int(header["positions"])
            if positions < 1 or len(data) <= start + 4 * positions:
                raise ValueError("it ends too early")
            return cls(
                build=str(header["build"]),
                model_hash=str(header["model_hash"]),
                kv_type=str(header["kv_type"]),
                chunk_tokens=int(header["chunk_tokens"]),
                prompt_tokens=int(header["prompt_tokens"]),
                prefill_target=int(header["prefill_target"]),
                ids=np.frombuffer(data, "<i4", positions, start).astype(np.int32),
                kv=np.frombuffer(data, np.uint8, -1, start + 4 * positions),
            )
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise EngineError("STATE_CORRUPT", f"the KV state cannot be read: {error}") from error
