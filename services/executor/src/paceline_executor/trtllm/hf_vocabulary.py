"""The vocabulary of a Hugging Face model folder, through the `transformers` that the vendor's image brings.

An answer's text is put together from the bytes of its tokens, so that a piece depends on nothing that comes later. Two
spellings of bytes in vocabularies are known: the byte alphabet of GPT-2, and word marks with `<0xNN>` of SentencePiece.
"""

import hashlib
import importlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paceline_executor.contract import Ids

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
_WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(value): value for value in printable}
    others = [value for value in range(256) if value not in set(printable)]
    table.update({chr(256 + place): value for place, value in enumerate(others)})
    return table


class HfVocabulary:
    """Implements `frames.backend.Vocabulary`. Raises ValueError for a spelling of bytes that it does not know."""

    def __init__(self, path: str, tokenizer: Any = None) -> None:
        self.name = Path(path).name
        if tokenizer is None:
            tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(path)
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self._special = frozenset(int(token) for token in tokenizer.all_special_ids)
        tokens: list[str] = list(tokenizer.convert_ids_to_tokens(list(range(self.vocab_size))))
        alphabet = byte_alphabet()
        sample = [token for place, token in enumerate(tokens) if place not in self._special]
        if any(token.startswith(_WORD_MARK) for token in sample) and any(map(_BYTE_TOKEN.match, sample)):
            pieces = [_marked(token) for token in tokens]
        elif sum(set(token) <= alphabet.keys() for token in sample) > 0.9 * len(sample):
            pieces = [_lettered(token, alphabet) for token in tokens]
        else:
            raise ValueError("this tokenizer spells bytes in a way that is not known here")
        self._pieces = [b"" if place in self._special else piece for place, piece in enumerate(pieces)]
        self.eos_token_id = int(tokenizer.eos_token_id)
        self.end_token_ids = frozenset({self.eos_token_id})
        self.chat_template: str | None = getattr(tokenizer, "chat_template", None)
        self.longest_piece_bytes = max(map(len, self._pieces))

    @cached_property
    def tokenizer_id(self) -> str:
        """Equal ids mean equal token ids for equal text."""
        digest = hashlib.sha256()
        for piece in self._pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return f"hf/{digest.hexdigest()[:16]}"

    @property
    def model_hash(self) -> str:
        """Name and vocabulary: weights are not read for it, so engines of one name must hold one model."""
        return f"{self.name}/{self.tokenizer_id}"

    def token_text(self, token: int) -> str:
        """How a token is written in a prompt."""
        return "" if token < 0 else str(self._tokenizer.convert_ids_to_tokens([token])[0])

    def tokenize_prompt(self, text: str) -> Ids:
        """Token ids of a rendered prompt; a beginning that the template wrote is not added twice."""
        start = self._tokenizer.bos_token
        ids = self._tokenizer.encode(text, add_special_tokens=not (start and text.startswith(start)))
        return np.array(ids, np.int32)

    def piece(self, token: int) -> bytes:
        """Bytes of a token in an answer."""
        return self._pieces[token]


def _lettered(token: str, alphabet: dict[str, int]) -> bytes:
    if all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    return token.encode()


def _marked(token: str) -> bytes:
    byte = _BYTE_TOKEN.match(token)
    return bytes([int(byte.group(1), 16)]) if byte else token.replace(_WORD_MARK, " ").encode()
