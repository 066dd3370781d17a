"""Pieces of Hugging Face vocabularies: bytes in both spellings, and what is not known is refused."""

from typing import Any

import pytest

from paceline_executor.trtllm.hf_vocabulary import HfVocabulary, byte_alphabet


class FakeTokenizer:
    """As much of a tokenizer as is used; `transformers` is in the vendor's image alone."""

    def __init__(self, tokens: list[str], special: list[int]) -> None:
        self.tokens = tokens
        self.all_special_ids = special
        self.eos_token_id = special[0]
        self.bos_token = tokens[special[0]]
        self.chat_template = None

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.tokens[token] for token in ids]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*([0] if add_special_tokens else []), *(1 for _ in text)]


def test_the_byte_alphabet_has_every_byte_once() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["A"] == 65


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (["<s>", "\u0120the", "\u00c3", "\u00a9"], [b"", b" the", b"\xc3", b"\xa9"]),
        (["<s>", "\u2581the", "<0xC3>", "caf\u00e9"], [b"", b" the", b"\xc3", "caf\u00e9".encode()]),
    ],
)
def test_pieces_are_bytes(tokens: list[str], pieces: list[bytes]) -> None:
    words = HfVocabulary("models/tiny", FakeTokenizer(tokens, [0]))
    assert [words.piece(token) for token in range(len(tokens))] == pieces
    assert words.end_token_ids == {0}
    assert words.longest_piece_bytes == max(map(len, pieces))
    assert words.model_hash.startswith("tiny/hf/")


def test_a_beginning_that_the_template_wrote_is_not_added_twice() -> None:
    tokenizer: Any = FakeTokenizer(["<s>", "a"], [0])
    words = HfVocabulary("x", tokenizer)
    assert words.tokenize_prompt("ab").tolist() == [0, 1, 1]
    assert words.tokenize_prompt("<s>a").tolist() == [1, 1, 1, 1]


def test_an_unknown_spelling_is_refused() -> None:
    with pytest.raises(ValueError, match="spells bytes"):
        HfVocabulary("x", FakeTokenizer(["<s>", "\u6771\u4eac", "\u3042"], [0]))
