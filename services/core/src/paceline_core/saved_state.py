"""How learned state is written: magic, checksum, JSON header, then arrays of little-endian float64."""

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from paceline_core.lengths import FloatArray


class StateError(ValueError):
    """Saved state that cannot be used: damaged, or of another version or other bins."""


def pack(magic: bytes, header: dict[str, Any], arrays: Sequence[FloatArray]) -> bytes:
    """Bytes of a state; `magic` (4 bytes) names kind and version."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    body = b"".join(
        [struct.pack("<I", len(text)), text, *(array.astype("<f8").tobytes() for array in arrays)]
    )
    return magic + struct.pack("<I", zlib.crc32(body)) + body


class Unpacker:
    """Reads what `pack` wrote: the header at once, the arrays one after the other."""

    def __init__(self, magic: bytes, state: bytes, kind: str) -> None:
        """`kind` names the state in errors. Raises StateError when it is damaged or something else."""
        if state[:4] != magic or len(state) < 12:
            raise StateError(f"not a saved state of {kind}, or of another version")
        checksum, size = struct.unpack_from("<II", state, 4)
        if zlib.crc32(memoryview(state)[8:]) != checksum:
            raise StateError("the saved state is damaged: its checksum does not fit")
        try:
            header = json.loads(state[12 : 12 + size])
        except ValueError as error:
            raise StateError(f"the saved state has no header: {error!r}") from None
        if not isinstance(header, dict):
            raise StateError("the saved state has no header")
        self.header: dict[str, Any] = header
        self._state = state
        self._at = 12 + size

    def array(self, *shape: int) -> FloatArray:
        """The next array. Raises StateError when it is not there, or holds what no outcomes give."""
        size = int(np.prod(shape))
        if len(self._state) < self._at + 8 * size:
            raise StateError("the saved state is too short")
        values = np.frombuffer(self._state, "<f8", size, self._at).reshape(shape).astype(np.float64)
        self._at += 8 * size
        if not np.isfinite(values).all():
            raise StateError("the saved state holds numbers that no outcomes give")
        return values
