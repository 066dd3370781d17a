"""What a length model reads of a question: hashed words of its texts, and numbers.

Used alike when models are trained and when they answer: whatever changes a value here changes FEATURES_VERSION, and
files that were trained with another version are refused.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_predictor.features.numeric import NUMERIC, add_cues, plain
from paceline_predictor.features.words import HashArray, Words, join, words
from paceline_predictor.model import LengthQuestion

__all__ = ["APP_BUCKETS", "FEATURES_VERSION", "NUMERIC", "TEXT_BUCKETS", "Features", "features"]

FEATURES_VERSION: Final = "1"
"""Stands in every model file."""

TEXT_BUCKETS: Final = 4096
"""Counts per question: words and pairs of the prompt's head, of its tail, of the output's tail; then the app."""

_HEAD: Final = (0, 2432)
_TAIL: Final = (2432, 1024)
_OUTPUT: Final = (3456, 576)
_APP: Final = (4032, 64)
"""First bucket and number of buckets of each part."""

APP_BUCKETS: Final = slice(_APP[0], _APP[0] + _APP[1])
"""Columns of which one is 1: the app tag's."""

_FIRSTS: Final = np.array([_HEAD[0], _TAIL[0], _OUTPUT[0]], dtype=np.uint64)
_SIZES: Final = np.array([_HEAD[1], _TAIL[1], _OUTPUT[1]], dtype=np.uint64)
_HALF: Final = np.uint64(32)
_ONE: Final = np.float32(1.0)

_PART_BYTES: Final = 4096
_OUTPUT_BYTES: Final = 1024
_CHUNK_BYTES: Final = 24_576
"""Texts of one pass over the arrays: few enough that they stay in the cache."""

_MARKERS: Final = (
    (b"<|", re.compile(rb"<\|[a-z_]{1,32}\|>(?:(?:system|user|assistant|tool)\b)?")),
    (b"INST]", re.compile(rb"\[/?INST\]")),
    (b"_of_turn>", re.compile(rb"<(?:start|end)_of_turn>(?:(?:user|model)\b)?")),
    (b"s>", re.compile(rb"</?s>")),
)
"""What chat templates put between turns, each with a part of it, so that the same prompt reads the same under all."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of N questions; always finite."""

    text: NDArray[np.float32]
    """float32[N, TEXT_BUCKETS]: counts."""
    numeric: NDArray[np.float32]
    """float32[N, len(NUMERIC)]"""


def features(questions: Sequence[LengthQuestion]) -> Features:
    """Features of questions. Accepts any text: of a prompt's parts 4,096 bytes are read each, of an output 1,024."""
    n = len(questions)
    text = np.empty((n, TEXT_BUCKETS), dtype=np.float32)
    numeric = np.empty((n, len(NUMERIC)), dtype=np.float32)
    parts: list[bytes] = []
    begin, size = 0, 1
    for row, question in enumerate(questions):
        texts = _texts(question)
        more = sum(map(len, texts)) + len(texts)
        if parts and size + more > _CHUNK_BYTES:
            _fill(questions[begin:row], parts, text[begin:row], numeric[begin:row])
            begin, parts, size = row, [], 1
        parts += texts
        size += more
    if parts:
        _fill(questions[begin:], parts, text[begin:], numeric[begin:])
    return Features(text, numeric)


def _texts(question: LengthQuestion) -> tuple[bytes, bytes, bytes]:
    """Head and tail of the prompt, tail of the output, as bytes of bounded length."""
    head = _plain(question.prompt_head[:_PART_BYTES].encode("utf-8", "surrogatepass")[:_PART_BYTES])
    tail = output = b""
    if question.prompt_tail:
        tail = _plain(question.prompt_tail[-_PART_BYTES:].encode("utf-8", "surrogatepass")[-_PART_BYTES:])
    if question.output_tail:
        output = question.output_tail[-_OUTPUT_BYTES:].encode("utf-8", "surrogatepass")[-_OUTPUT_BYTES:]
    return head, tail, output


def _plain(text: bytes) -> bytes:
    """A prompt without the markers of its chat template."""
    if b"<" in text or b"[" in text:  # single bytes are looked for fast
        for part, marker in _MARKERS:
            if part in text:
                text = marker.sub(b"", text)
    return text.strip()


def _fill(
    questions: Sequence[LengthQuestion],
    parts: Sequence[bytes],
    text: NDArray[np.float32],
    numeric: NDArray[np.float32],
) -> None:
    """Features of a few questions, whose texts are parts[3 * i : 3 * i + 3], into their rows."""
    joint, begins = join(parts)
    found = words(joint, begins)
    _count(found, text)
    bounds = found.bounds.tolist()
    rows = []
    for i, question in enumerate(questions):
        head, tail, output = parts[3 * i : 3 * i + 3]
        text[i, _app_bucket(question.app)] = 1.0
        hashes = found.hashes[bounds[3 * i + 2] : bounds[3 * i + 3]].tolist() if output else []
        rows.append(plain(question, head, tail, output, hashes))
    add_cues(rows, found, bounds, joint)
    numeric[:] = rows


@lru_cache(maxsize=1024)
def _app_bucket(app: str) -> int:
    return _APP[0] + zlib.crc32(app.encode("utf-8", "surrogatepass")) % _APP[1]


def _first_buckets(n: int) -> HashArray:
    """The first bucket of each of the 3 n texts of n questions."""
    return np.asarray(np.arange(n, dtype=np.uint64)[:, None] * np.uint64(TEXT_BUCKETS) + _FIRSTS).ravel()


def _count(found: Words, text: NDArray[np.float32]) -> None:
    """Count words and pairs in the buckets of their part, into text [n, TEXT_BUCKETS]."""
    text[:] = 0.0
    if not found.count:
        return
    n = len(text)
    flat = text.reshape(-1)
    # The upper half of a hash, as a number below the part's size.
    places = found.hashes >> _HALF
    if n == 1 and found.bounds[1] == found.count:  # all words are in the head
        places *= _SIZES[0]
        places >>= _HALF
        np.add.at(flat, places.view(np.int64), _ONE)
        return
    per_text = np.diff(found.bounds)
    first = np.repeat(_first_buckets(n), per_text)
    size = np.repeat(np.tile(_SIZES, n), per_text)
    for part in (places[: found.count], places[found.count :]):
        part *= size[: len(part)]
        part >>= _HALF
        part += first[: len(part)]
    # The last word of a text makes no pair with the first one of the next.
    last = found.bounds[1:-1] - 1
    last = last[(last >= 0) & (last < found.count - 1)]
    places[found.count + last] = text.size
    buckets = places.view(np.int64)
    np.add.at(flat, buckets[buckets < text.size], _ONE)
