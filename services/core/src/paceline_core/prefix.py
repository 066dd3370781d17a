"""Chained hashes of a prompt's text blocks: two prompts share a prefix of k blocks when their first k hashes
are equal.

A hash covers its block and, through the chain, every block before it and the salt. Only whole blocks are
hashed, so a longer prompt keeps the hashes of the shorter one it begins with.
"""

from hashlib import blake2b
from typing import Final

BLOCK_BYTES: Final = 256
MAX_BLOCKS: Final = 1024
"""Blocks hashed at most (256 KB of text): prefixes that differ later than that are as good as equal for
placement."""


def prefix_hashes(text: bytes, salt: bytes = b"", max_blocks: int = MAX_BLOCKS) -> tuple[int, ...]:
    """Hashes of the whole 256-byte blocks of `text` (UTF-8), unsigned 64-bit, first block first."""
    link = blake2b(salt, digest_size=8, person=b"paceline").digest()
    view = memoryview(text)
    hashes = []
    for start in range(0, min(len(text) // BLOCK_BYTES, max_blocks) * BLOCK_BYTES, BLOCK_BYTES):
        digest = blake2b(link, digest_size=8)
        digest.update(view[start : start + BLOCK_BYTES])
        link = digest.digest()
        hashes.append(int.from_bytes(link, "little"))
    return tuple(hashes)


def shared_blocks(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Number of leading blocks that two prompts have in common."""
    shared = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        shared += 1
    return shared
