"""The output of a request: ids, text, and how much text each token released."""

from typing import Final

import numpy as np

_WORD: Final = 4


class Output:
    """Everything published so far, packed as on the wire: int32 ids, uint32 text lengths, UTF-8 text."""

    __slots__ = ("count", "ids", "lengths", "text")

    def __init__(self) -> None:
        self.count = 0
        self.ids = bytearray()
        self.lengths = bytearray()
        self.text = bytearray()

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return len(self.ids) + len(self.lengths) + len(self.text)

    def append(self, ids: bytes, lengths: bytes, text: bytes) -> None:
        """Add tokens at the end. `ids` and `lengths` hold one little-endian word each."""
        self.ids += ids
        self.lengths += lengths
        self.text += text
        self.count += len(ids) // _WORD

    def text_offset(self, index: int) -> int:
        """Byte of the text at which token `index` begins."""
        if index <= 0:
            return 0
        if index >= self.count:
            return len(self.text)
        return int(np.frombuffer(bytes(self.lengths[: index * _WORD]), "<u4").sum())

    def text_before(self, index: int, most_bytes: int) -> bytes:
        """The end of the text as it was when tokens 0..index-1 were out; its first character may be cut."""
        end = self.text_offset(index)
        return bytes(self.text[max(end - most_bytes, 0) : end])

    def span(self, first: int, last: int, text_from: int) -> tuple[bytes, bytes, bytes]:
        """Ids, lengths and text of tokens first..last-1, when the text of `first` begins at byte `text_from`."""
        lengths = bytes(self.lengths[first * _WORD : last * _WORD])
        if last == self.count:
            text = bytes(self.text[text_from:])
        elif last - first == 1:
            text = bytes(self.text[text_from : text_from + int.from_bytes(lengths, "little")])
        else:
            text = bytes(self.text[text_from : text_from + int(np.frombuffer(lengths, "<u4").sum())])
        return bytes(self.ids[first * _WORD : last * _WORD]), lengths, text
