"""The language of simulated engines: a small vocabulary, a tokenizer that loses nothing, and an endless text.

The text is one long ring of tokens made once per seed; an attempt reads it from an offset drawn from its prompt. So
token i is a function of (seed, prompt ids, i) alone, a replay repeats it on any engine of the same seed, and a step of
many attempts is a gather in arrays.
"""

import functools
import itertools
import re
import string
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

END_ID = 0
_FIRST_BYTE_ID = 1
RING_TOKENS = 1 << 16
"""Length of the ring; a power of two, so that a position wraps by a mask."""
RING_MASK = RING_TOKENS - 1

_WORD_LIST = """
the of and to in is that for it as with on be at by this have from or one had not but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know get through back
much before line good new write our me man too any day same right look think also around another came come
work three word must because does part even place well such here take why things help put years different away
again off went old number great tell men say small every found still between name should home big give air set
own under read last never us left end along while might next sound below saw something thought both few those
always looked show large often together asked house world going want café naïve façade über Zürich señor 東京
データ Привет λόγος 🙂 🚀 — “so” ½
"""
_WORDS = tuple(_WORD_LIST.split())
_MARKS = (".", ",", "\n", ":", ";", "?", "!", " (", ")", " -")


@dataclass(frozen=True, slots=True)
class Language:
    """Vocabulary, tokenizer and ring of one seed. Immutable and shared by all engines of a process."""

    seed: int
    pieces: tuple[bytes, ...]
    """Bytes of each token id."""
    ring_ids: NDArray[np.int32]
    """int32[RING_TOKENS]: the token at each position."""
    ring_lengths: NDArray[np.uint32]
    """uint32[RING_TOKENS]: bytes released with it, 0 inside a character."""
    ring_text: tuple[bytes, ...]
    """The text released with it."""
    ring_tail: tuple[bytes, ...]
    """The text released with it if it is the last one: a cut character becomes U+FFFD."""
    boundary: NDArray[np.bool_]
    """True at positions where a character begins."""
    starts: NDArray[np.int32]
    """Those positions: where an attempt may start to read."""
    _ids: dict[str, int]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.pieces)

    @property
    def longest_piece_bytes(self) -> int:
        """Bytes of the longest token that a text can have."""
        return 4

    @property
    def tokenizer_id(self) -> str:
        """Names the tokenizer; all seeds share it."""
        return f"simulated/{zlib.crc32(b''.join(self.pieces)):08x}"

    def tokenize_prompt(self, text: str) -> NDArray[np.int32]:
        """Token ids of a text, int32[n]. Their pieces put together are the UTF-8 of the text."""
        ids = self._ids
        found = _TOKEN.findall(text.encode("utf-8", "replace").decode("latin-1"))
        return np.fromiter(map(ids.__getitem__, found), dtype=np.int32, count=len(found))

    def text_of(self, ids: NDArray[np.int32]) -> bytes:
        """Bytes of a run of ids. Ids outside the vocabulary raise IndexError."""
        return b"".join([self.pieces[token] for token in ids.tolist()])

    def offset_of(self, prompt_ids: NDArray[np.int32], seed: int) -> int:
        """Where in the ring the answer to this prompt starts."""
        draw = zlib.crc32(prompt_ids.astype("<i4").tobytes(), (self.seed * 0x9E3779B1 + seed) & 0xFFFFFFFF)
        return int(self.starts[draw % len(self.starts)])


# Lower-case runs of up to three letters are tokens, all else is bytes: about 2.5 characters a token on English prompts.
_TOKEN = re.compile(r" ?[a-z]{1,3}|[\x00-\xff]", re.DOTALL)


@functools.lru_cache(maxsize=8)
def language(seed: int) -> Language:
    """The language of a seed; made in some 100 ms, then kept."""
    fragments = _fragments()
    shown = [b"", *(bytes([value]) for value in range(256)), *(text.encode() for text in fragments)]
    first_word = len(shown)
    spoken = [*(f" {word}" for word in _WORDS), *_MARKS]
    pieces = tuple(shown + [text.encode() for text in spoken])
    ids = {bytes([value]).decode("latin-1"): _FIRST_BYTE_ID + value for value in range(256)}
    ids.update({text: _FIRST_BYTE_ID + 256 + index for index, text in enumerate(fragments)})
    ring = _ring(np.random.default_rng(seed), first_word, spoken)
    texts, tails = _released(ring, pieces)
    # A position begins a character if the one before it held nothing back.
    boundary = np.array([True, *(text != b"" for text in texts[:-1])])
    return Language(
        seed=seed,
        pieces=pieces,
        ring_ids=ring,
        ring_lengths=np.array([len(text) for text in texts], dtype=np.uint32),
        ring_text=tuple(texts),
        ring_tail=tuple(tails),
        boundary=boundary,
        starts=np.flatnonzero(boundary).astype(np.int32),
        _ids=ids,
    )


def _fragments() -> list[str]:
    letters = string.ascii_lowercase
    runs = ["".join(run) for size in (1, 2, 3) for run in itertools.product(letters, repeat=size)]
    return [*(run for run in runs if len(run) > 1), *(f" {run}" for run in runs)]


def _ring(rng: np.random.Generator, first_word: int, spoken: list[str]) -> NDArray[np.int32]:
    """Words at random; every eighth word beyond ASCII is spelled in byte tokens, as real vocabularies do."""
    marks = len(_MARKS)
    kinds = rng.random(RING_TOKENS)
    words = rng.integers(0, len(spoken) - marks, RING_TOKENS)
    chosen = np.where(kinds < 0.12, len(spoken) - marks + rng.integers(0, marks, RING_TOKENS), words)
    spell = rng.random(RING_TOKENS) < 0.5
    ring: list[int] = []
    for index, in_bytes in zip(chosen.tolist(), spell.tolist(), strict=True):
        if in_bytes and not spoken[index].isascii():
            ring.extend(_FIRST_BYTE_ID + value for value in spoken[index].encode())
        else:
            ring.append(first_word + index)
        if len(ring) >= RING_TOKENS - 32:
            break
    ring.extend([first_word] * (RING_TOKENS - len(ring)))
    return np.array(ring, dtype=np.int32)


def _released(ring: NDArray[np.int32], pieces: tuple[bytes, ...]) -> tuple[list[bytes], list[bytes]]:
    """Text released at each position, and the same if the reader stops there."""
    texts: list[bytes] = []
    tails: list[bytes] = []
    held = b""
    for token in ring.tolist():
        held += pieces[token]
        try:
            held.decode()
        except UnicodeDecodeError:
            texts.append(b"")
            tails.append("\N{REPLACEMENT CHARACTER}".encode())
        else:
            texts.append(held)
            tails.append(held)
            held = b""
    return texts, tails
