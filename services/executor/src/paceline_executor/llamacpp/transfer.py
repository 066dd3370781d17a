"""The bytes a KV state travels in."""

import json
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_executor.contract import EngineError, Ids

_MAGIC = b"PLKV\x01"
_HEADER = struct.Struct("<5sI")


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
