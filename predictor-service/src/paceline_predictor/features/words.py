"""Words of many texts as 64-bit hashes, by array arithmetic over their bytes.

A word is a run of letters, digits or bytes of non-ASCII characters; letters are lower-cased, every digit reads as 0. A
Chinese, Japanese or Korean character is a word by itself. With random 64-bit values v of bytes and an odd base B, the
word at bytes s .. e-1 hashes to

    sum over i of v[b_i] * B^(i-s)  =  (C[e-1] - C[s-1]) * B^(-s),    C the running sum of v[b_i] * B^i   (mod 2^64)

so that no loop over words is needed. The same bytes give the same hash in every process and on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_BYTES: Final = 65_536
"""Longest joint text of one call of `words`."""

HashArray = NDArray[np.uint64]
IndexArray = NDArray[np.int64]

_BASE: Final = 0x9E3779B97F4A7C15
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)
_PAIR: Final = np.uint64(0x94D049BB133111EB)
_SHIFT: Final = np.uint64(31)
_MASK: Final = (1 << 64) - 1


def _fold() -> bytes:
    """What a byte reads as; 0: it separates words."""
    table = bytearray(256)
    for byte in range(256):
        if 0x61 <= byte <= 0x7A or byte >= 0x80:
            table[byte] = byte
        elif 0x41 <= byte <= 0x5A:
            table[byte] = byte + 32
        elif 0x30 <= byte <= 0x39:
            table[byte] = 0x30
    return bytes(table)


def _values() -> HashArray:
    """Random values of bytes (SplitMix64), uint64[256]; 0 of a separator."""
    values, state = [0], 0x5EED
    for _ in range(255):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        values.append(z ^ (z >> 31))
    return np.array(values, dtype=np.uint64)


def _powers(base: int) -> HashArray:
    """base^0, base^1, ... modulo 2^64."""
    factors = np.full(MAX_BYTES, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


_FOLD: Final = _fold()
_VALUES: Final = _values()
_POWERS: Final = _powers(_BASE)
_INVERSES: Final = _powers(pow(_BASE, -1, 1 << 64))
_FIRST_IDEOGRAPH: Final = 0xE3
_IS_IDEOGRAPH: Final = np.array([_FIRST_IDEOGRAPH <= byte <= 0xED for byte in range(256)])


@dataclass(frozen=True, slots=True)
class Words:
    """The words of S texts, in order."""

    count: int
    """W: how many there are."""
    hashes: HashArray
    """uint64[2 W - 1] (or empty): first of the W words, then of each word with its successor, which may stand in the
    next text."""
    starts: IndexArray
    """int64[W]: where a word begins in the joint text, bytes."""
    bounds: IndexArray
    """int64[S+1]: words bounds[s] .. bounds[s+1]-1 are those of text s."""


def join(texts: Sequence[bytes]) -> tuple[bytes, IndexArray]:
    """The texts in one, a space around each, and where each begins (and the end), int64[S+1]."""
    ends = [1]
    for text in texts:
        ends.append(ends[-1] + len(text) + 1)
    return b" " + b" ".join(texts) + b" ", np.array(ends, dtype=np.int64)


def words(joint: bytes, begins: IndexArray) -> Words:
    """The words of texts that `join` put together. Raises ValueError over MAX_BYTES."""
    if len(joint) > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES} bytes at once, got {len(joint)}")
    folded = np.frombuffer(joint.translate(_FOLD), dtype=np.uint8)
    edges = _edges(folded, joint.isascii())
    running = _VALUES.take(folded)
    running *= _POWERS[: len(running)]
    np.add.accumulate(running, out=running)
    sums = running.take(edges)
    starts = edges[0::2] + 1
    count = len(starts)
    hashes = np.empty(max(0, 2 * count - 1), dtype=np.uint64)
    single, pairs = hashes[:count], hashes[count:]
    np.subtract(sums[1::2], sums[0::2], out=single)
    single *= _INVERSES.take(starts)
    _mix(single)
    if count > 1:
        np.multiply(single[:-1], _PAIR, out=pairs)
        pairs += single[1:]
        _mix(pairs)
    return Words(count, hashes, starts, starts.searchsorted(begins))


def _edges(folded: NDArray[np.uint8], is_ascii: bool) -> IndexArray:
    """Of each word the byte before its first, then its last one."""
    inside = folded != 0
    if is_ascii or folded.max(initial=0) < _FIRST_IDEOGRAPH:
        return np.asarray((inside[1:] != inside[:-1]).nonzero()[0])
    begin = inside[1:] & (~inside[:-1] | _IS_IDEOGRAPH[folded[1:]])
    end = inside[:-1] & (~inside[1:] | _IS_IDEOGRAPH[folded[1:]])
    return np.stack([begin.nonzero()[0], end.nonzero()[0]], axis=1).ravel()


def _mix(hashes: HashArray) -> None:
    """Make the upper bits depend on all bits."""
    hashes ^= hashes >> _SHIFT
    hashes *= _MIX


def hash_of(phrase: str) -> int:
    """The hash that a word, or a pair of words, has in `Words`; for tables. Raises ValueError on other phrases."""
    found = words(*join([phrase.encode()]))
    if found.count not in (1, 2):
        raise ValueError(f"neither one word nor two: {phrase!r}")
    return int(found.hashes[-1])
