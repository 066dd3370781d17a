"""Which engine has which prefix: chained block hashes of what was sent where, in bounded memory."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from paceline_core.placement.view import Floats

BLOCKS_PER_ENGINE: Final = 4096
"""About 1 MB of text."""
MAX_BLOCKS: Final = 1 << 20
"""Over all engines."""


class PrefixIndex:
    """Per engine, the least recently used blocks are forgotten first: they are what the engine evicts first too, as far
    as can be told from outside. A chained hash stands for its whole prefix, so a prefix is there only as far as every
    block before it is."""

    def __init__(self, blocks_per_engine: int = BLOCKS_PER_ENGINE, max_blocks: int = MAX_BLOCKS) -> None:
        if blocks_per_engine < 1 or max_blocks < 1:
            raise ValueError("an index of no blocks is none")
        self._per_engine = blocks_per_engine
        self._max = max_blocks
        self._used: dict[int, OrderedDict[int, None]] = {}
        self._where: dict[int, int] = {}
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def put(self, row: int, hashes: Sequence[int]) -> None:
        """A prompt with these blocks went to the engine."""
        used = self._used.setdefault(row, OrderedDict())
        bit = 1 << row
        # Last block first: of one prompt the head is to be forgotten last.
        for block in reversed(hashes[: self._per_engine]):
            if block in used:
                used.move_to_end(block)
                continue
            used[block] = None
            self._where[block] = self._where.get(block, 0) | bit
            self._total += 1
        while len(used) > self._per_engine or (self._total > self._max and used):
            self._forget(row, used.popitem(last=False)[0])

    def blocks(self, hashes: Sequence[int], engines: int) -> Floats | None:
        """float64[E]: leading blocks that each engine has; None when no engine has the first one."""
        having = self._where.get(hashes[0], 0) if hashes else 0
        if not having:
            return None
        found = np.zeros(engines)
        for depth, block in enumerate(hashes):
            still = having & self._where.get(block, 0)
            for row in _bits(having & ~still):
                if row < engines:
                    found[row] = depth
            having = still
            if not having:
                return found
        for row in _bits(having):
            if row < engines:
                found[row] = len(hashes)
        return found

    def clear(self, row: int) -> None:
        """The engine lost its cache."""
        for block in self._used.pop(row, ()):
            self._forget(row, block)

    def _forget(self, row: int, block: int) -> None:
        left = self._where[block] & ~(1 << row)
        if left:
            self._where[block] = left
        else:
            del self._where[block]
        self._total -= 1


def _bits(mask: int) -> list[int]:
    rows = []
    while mask:
        low = mask & -mask
        rows.append(low.bit_length() - 1)
        mask ^= low
    return rows
