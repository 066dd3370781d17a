"""What the emulated model says: the next token is a function of all ids before it, as for a real one.

A greedy request that goes on from prompt and output ids therefore gives the tokens that the uninterrupted one would
have given. With a temperature the draw also depends on the seed and on how many tokens *this* submission has made:
seeded sampling does not survive a resume, here as there.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from paceline_executor.simulated.language import END_ID, Language

_LEAD_BYTE_ID = 1 + 0xC3
_CONTINUATION_ID = 1 + 0x80
_SPELLED_IN = 24
_MASK = 0xFFFFFFFF


class Speaker:
    """One vocabulary and one notion of how long answers are.

    `words`: the ids to speak in, of another vocabulary than the simulated language's; they spell nothing in bytes.
    """

    def __init__(
        self, language: Language, median_tokens: float, words: Sequence[int] = (), end_id: int = END_ID
    ) -> None:
        spoken = np.unique(language.ring_ids)
        self._words: list[int] = list(words) or spoken[spoken > 256].tolist()
        self._spells = not words
        self._end_id = end_id
        self._ends_in = max(1, round(median_tokens / 0.6931))

    def state_of(self, ids: Sequence[int], weights: int = 0) -> int:
        """The state after a run of ids."""
        return zlib.crc32(np.array(ids, "<i4").tobytes(), weights)

    def advance(self, state: int, token: int) -> int:
        """The state after one more id."""
        return zlib.crc32(token.to_bytes(4, "little"), state)

    def next(self, state: int, last: int, draw: tuple[int, int] | None, *, may_end: bool) -> int:
        """The token after `state`, whose last id is `last`. `draw`: (seed, tokens made) when it samples."""
        if draw is not None:
            state = zlib.crc32(struct.pack("<QI", draw[0] & 0xFFFFFFFFFFFFFFFF, draw[1]), state)
        number = (state * 0x9E3779B1 + 0x7F4A7C15) & _MASK
        number ^= number >> 15
        if self._spells and last == _LEAD_BYTE_ID:
            return _CONTINUATION_ID + number % 64
        if may_end and (number >> 7) % self._ends_in == 0:
            return self._end_id
        if self._spells and (number >> 3) % _SPELLED_IN == 0:
            return _LEAD_BYTE_ID
        return self._words[number % len(self._words)]
