"""One blob for the state of all learners: named parts, each in a format of its own."""

import json
import struct
import zlib
from collections.abc import Mapping

LENGTHS = "lengths"
"""The part of the length model."""
_MAGIC = b"PLS1"
_HEAD = struct.Struct("<4sII")
_LENGTHS_ALONE = b"PLH1"


def packed(parts: Mapping[str, bytes]) -> bytes:
    """Magic, checksum, size of the header, header (names and sizes, JSON), the parts."""
    header = json.dumps([[name, len(state)] for name, state in parts.items()], separators=(",", ":")).encode()
    body = b"".join([header, *parts.values()])
    return _HEAD.pack(_MAGIC, zlib.crc32(body), len(header)) + body


def unpacked(blob: bytes) -> dict[str, bytes]:
    """The parts by name. Histograms saved before there were parts are the length part. Raises ValueError."""
    if blob[:4] == _LENGTHS_ALONE:
        return {LENGTHS: blob}
    if len(blob) < _HEAD.size or blob[:4] != _MAGIC:
        raise ValueError("not a saved state of a predictor, or of another version")
    _, checksum, size = _HEAD.unpack_from(blob)
    if zlib.crc32(memoryview(blob)[_HEAD.size :]) != checksum:
        raise ValueError("the saved state is damaged: its checksum does not fit")
    at = _HEAD.size + size
    parts = {}
    try:
        for name, length in json.loads(blob[_HEAD.size : at]):
            parts[str(name)] = blob[at : at + int(length)]
            at += int(length)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the saved state has no header: {error!r}") from None
    if at != len(blob):
        raise ValueError("the saved state has parts of other sizes than it says")
    return parts
