"""Words that tell of the length or the form of an answer, found by their hashes."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_predictor.features.words import HashArray, hash_of

PROMPT_CUES: Final[dict[str, tuple[str, ...]]] = {
    "asks_json": ("json", "yaml", "xml", "schema"),
    "asks_code": (
        "code",
        "python",
        "javascript",
        "typescript",
        "java",
        "rust",
        "sql",
        "html",
        "css",
        "bash",
        "script",
        "program",
        "implement",
        "refactor",
        "def",
        "class",
        "unit tests",
        "c code",
        "golang",
        "regex",
    ),
    "asks_function": ("function", "your function", "the function", "docstring", "write the"),
    "asks_list": ("list", "bullet", "bullets", "enumerate", "top 0", "top 00", "numbered", "items", "ideas"),
    "asks_table": ("table", "markdown", "csv", "columns"),
    "asks_brief": (
        "briefly",
        "brief",
        "short",
        "concise",
        "concisely",
        "succinct",
        "one sentence",
        "one word",
        "a sentence",
        "single word",
        "only the",
        "just the",
        "only output",
        "only respond",
        "only return",
        "yes or",
        "tl dr",
        "tldr",
    ),
    "asks_long": (
        "detailed",
        "detail",
        "essay",
        "thorough",
        "thoroughly",
        "comprehensive",
        "article",
        "blog",
        "report",
        "story",
        "in depth",
        "chapter",
        "long",
        "elaborate",
        "outline",
        "plan",
    ),
    "asks_steps": ("step by", "steps", "show your", "reasoning", "prove", "derive", "explain", "think step"),
    "asks_summary": ("summarize", "summary", "summarise", "abstract", "paraphrase", "shorten"),
    "asks_translation": ("translate", "translation", "into french", "into english", "into spanish"),
    "asks_rewrite": ("rewrite", "edit", "correct", "grammar", "rephrase", "proofread", "fix", "revise"),
    "asks_class": (
        "classify",
        "sentiment",
        "true or",
        "positive or",
        "label",
        "which of",
        "category",
        "multiple choice",
    ),
    "asks_maths": (
        "solve",
        "equation",
        "calculate",
        "how many",
        "how much",
        "integral",
        "probability",
        "total",
    ),
    "asks_write": (
        "write a",
        "write an",
        "compose",
        "create a",
        "generate a",
        "draft",
        "poem",
        "letter",
        "email",
    ),
    "asks_what": ("what is", "who is", "who was", "when did", "where is", "what are", "which", "define"),
    "asks_how": ("how to", "how do", "how can", "why", "compare", "difference between", "explain how"),
    "has_error": ("error", "traceback", "exception", "failed", "assertionerror", "bug"),
    "has_tool_talk": (
        "tool",
        "tools",
        "observation",
        "arguments",
        "function call",
        "tool call",
        "thought",
        "agent",
    ),
}
"""Cue -> words or pairs of words; digits stand for any digit."""

OUTPUT_CUES: Final[dict[str, tuple[str, ...]]] = {
    "output_concludes": (
        "in conclusion",
        "in summary",
        "overall",
        "finally",
        "to summarize",
        "conclusion",
        "therefore",
        "hence",
    ),
    "output_says_goodbye": (
        "hope this",
        "let me",
        "feel free",
        "best regards",
        "sincerely",
        "good luck",
        "any questions",
        "help you",
    ),
    "output_answers": ("final answer", "the answer", "answer is", "boxed", "so the"),
    "output_goes_on": (
        "for example",
        "firstly",
        "first",
        "next",
        "another",
        "additionally",
        "also",
        "second",
    ),
}
"""The same for generated text."""

COUNTED: Final = (
    "words",
    "word",
    "sentences",
    "sentence",
    "paragraphs",
    "paragraph",
    "lines",
    "pages",
    "items",
    "examples",
    "points",
    "steps",
    "ideas",
    "reasons",
    "questions",
    "characters",
    "tips",
    "ways",
    "bullet",
    "tokens",
)
"""What a prompt may ask a number of."""

_TOKENS_EACH: Final = {
    "words": 1.3,
    "word": 1.3,
    "sentences": 25.0,
    "sentence": 25.0,
    "paragraphs": 100.0,
    "paragraph": 100.0,
    "lines": 12.0,
    "pages": 600.0,
    "characters": 0.25,
    "tokens": 1.0,
}
_TOKENS_OF_ANOTHER: Final = 25.0


class CueTable:
    """Finds phrases among hashes: one look at a small table by the upper bits, then the few hits are looked up."""

    def __init__(self, cues: Sequence[tuple[str, ...]]) -> None:
        self._numbers: dict[int, int] = {}
        self._may_be = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        for number, phrases in enumerate(cues):
            for phrase in phrases:
                value = hash_of(phrase)
                self._numbers.setdefault(value, number)
                self._may_be[value >> (64 - _TABLE_BITS)] = True
        known = sorted(self._numbers.items())
        self._sorted = np.array([value for value, _ in known], dtype=np.uint64)
        self._number_of = np.array([number for _, number in known], dtype=np.int64)

    def find(self, hashes: HashArray) -> list[tuple[int, int]]:
        """Index of each hash that is a cue, ascending, and the number of the cue."""
        hits = self._may_be.take((hashes >> _TABLE_SHIFT).view(np.int64)).nonzero()[0]
        numbers = self._numbers
        return [
            (at, numbers[value])
            for at, value in zip(hits.tolist(), hashes[hits].tolist(), strict=True)
            if value in numbers
        ]

    def find_many(self, hashes: HashArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `find`, in arrays: of long texts."""
        hits = self._may_be.take((hashes >> _TABLE_SHIFT).view(np.int64)).nonzero()[0]
        values = hashes[hits]
        entry = np.minimum(self._sorted.searchsorted(values), len(self._sorted) - 1)
        true = self._sorted[entry] == values
        return hits[true], self._number_of[entry[true]]


_TABLE_BITS: Final = 14
_TABLE_SHIFT: Final = np.uint64(64 - _TABLE_BITS)
_NUMBERS = [tuple(f"{'0' * digits} {unit}" for digits in (1, 2, 3, 4)) for unit in COUNTED]
PROMPT_TABLE: Final = CueTable([*PROMPT_CUES.values(), *_NUMBERS])
"""Finds the number of a cue in PROMPT_CUES, or len(PROMPT_CUES) plus that of a unit in COUNTED."""
OUTPUT_TABLE: Final = CueTable(list(OUTPUT_CUES.values()))


def tokens_asked(number: int, unit: int) -> float:
    """About how many tokens `number` of COUNTED[unit] are."""
    return number * _TOKENS_EACH.get(COUNTED[unit], _TOKENS_OF_ANOTHER)
