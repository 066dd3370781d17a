"""Turns output tokens into text pieces, one per token.

The piece of token i is a function of ids 0..i and the stop strings alone, so a replay, a move or a second publishing
gives the same pieces. A piece never splits a UTF-8 character, and text that may be the beginning of a stop string is
held back until it is known not to be.
"""

import codecs


class OutputText:
    """The text of one answer as it grows."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = tuple(text for text in stop if text)
        self._longest_stop = max((len(text) for text in self._stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._as_is = not self._stop
        """True while a piece of ASCII is its own text: nothing is held back, and no character is half there."""

    def push(self, piece: bytes) -> tuple[str, str]:
        """Add a token's bytes: (text released now, stop string that matched or ""). After a match nothing follows."""
        if self._as_is and piece.isascii():
            return piece.decode("ascii"), ""
        text = self._decoder.decode(piece)
        if not self._stop:
            self._as_is = not self._decoder.getstate()[0]
            return text, ""
        text = self._held + text
        matches = [(position, stop) for stop in self._stop if (position := text.find(stop)) >= 0]
        if matches:
            position, stop = min(matches)
            self._held = ""
            return text[:position], stop
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def finish(self) -> str:
        """Release what was held back; an unfinished character becomes U+FFFD."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return text

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that some stop string begins with."""
        for length in range(min(len(text), self._longest_stop - 1), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
