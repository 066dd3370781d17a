"""Features that are numbers: what the request declares, the form its text asks for, and how far the answer is."""

import math
from bisect import bisect_right
from math import log1p
from typing import Final

import numpy as np

from paceline_predictor.features import cues, progress
from paceline_predictor.features.words import Words
from paceline_predictor.model import LengthQuestion

_DECLARED: Final = (
    "log_prompt_tokens",
    "log_max_tokens",
    "max_tokens_unknown",
    "temperature",
    "log_turn",
    "has_tools",
    "wants_json",
    "log_task_stage",
    "has_app",
)
_FORM: Final = (
    "log_head_bytes",
    "has_tail",
    "log_lines",
    "log_question_marks",
    "log_fences",
    "log_braces",
    "log_backslashes",
    "log_equals",
    "non_ascii",
    "ends_with_question",
    "ends_with_colon",
    "ends_with_code",
    "log_tokens_asked",
    "asks_count",
)
_PROGRESS: Final = ("has_output", "log_generated", "log_limit_left", *progress.NAMES)

NUMERIC: Final[tuple[str, ...]] = (
    *_DECLARED,
    *_FORM,
    *cues.PROMPT_CUES,
    *_PROGRESS,
    *cues.OUTPUT_CUES,
)
"""Names of the numeric features, in order."""

_PROMPT_AT: Final = len(_DECLARED) + len(_FORM)
_OUTPUT_AT: Final = len(NUMERIC) - len(cues.OUTPUT_CUES)
_ASKED_AT: Final = NUMERIC.index("log_tokens_asked")
_MOST_NUMBERS: Final = 4
_MANY_WORDS: Final = 600
"""From so many words on, cues that are told again and again are sorted out before they are looked at one by one."""
_OUTPUT: Final = 2
"""Place of the output among the texts of a question."""
_MOST_COUNTED: Final = 1 << 24


def plain(
    question: LengthQuestion, head: bytes, tail: bytes, output: bytes, hashes: list[int]
) -> list[float]:
    """One row of NUMERIC, but for the cues that `add_cues` finds. `hashes`: of the words of `output`."""
    end = (tail or head)[-64:].rstrip()
    texts = head + tail if tail else head
    generated = _count(question.generated_tokens)
    limit = _count(question.max_tokens)
    temperature = float(question.temperature)
    count = texts.count
    return [
        log1p(_count(question.prompt_tokens)),
        log1p(limit),
        0.0 if limit else 1.0,
        min(max(temperature, 0.0), 2.0) if math.isfinite(temperature) else 0.0,
        log1p(_count(question.turn_index)),
        1.0 if question.has_tools else 0.0,
        1.0 if question.wants_json else 0.0,
        log1p(_count(question.task_stage)),
        1.0 if question.app else 0.0,
        log1p(len(head)),
        1.0 if tail else 0.0,
        log1p(count(b"\n")),
        log1p(count(b"?")),
        log1p(count(b"```")),
        log1p(count(b"{")),
        log1p(count(b"\\")),
        log1p(count(b"=")),
        0.0 if texts.isascii() else 1.0,
        1.0 if end.endswith(b"?") else 0.0,
        1.0 if end.endswith(b":") else 0.0,
        1.0 if end.endswith((b"```", b"}", b";", b")", b'"""')) else 0.0,
        0.0,
        0.0,
        *_NO_CUES,
        1.0 if generated else 0.0,
        log1p(generated),
        log1p(max(limit - generated, 0.0)) if limit and generated else 0.0,
        *progress.progress(output, hashes),
        *_NO_OUTPUT_CUES,
    ]


_NO_CUES: Final = (0.0,) * len(cues.PROMPT_CUES)
_NO_OUTPUT_CUES: Final = (0.0,) * len(cues.OUTPUT_CUES)


def add_cues(rows: list[list[float]], found: Words, bounds: list[int], joint: bytes) -> None:
    """Set the cues of the prompts and outputs, three texts per row (head, tail, output). `bounds`: of `found`.

    A pair belongs to the text of its first word. Of the numbers that a prompt asks for the first few are read.
    """
    words, forms = found.count, len(cues.PROMPT_CUES)
    numbers_of: dict[int, int] = {}
    for at, cue in _cues(cues.PROMPT_TABLE, forms, found):
        word = at if at < words else at - words
        row, part = divmod(bisect_right(bounds, word) - 1, 3)
        if part == _OUTPUT:
            continue
        if cue < forms:
            rows[row][_PROMPT_AT + cue] = 1.0
        elif numbers_of.setdefault(row, 0) < _MOST_NUMBERS:
            numbers_of[row] += 1
            start = int(found.starts[word])
            digits = bytes(byte for byte in joint[start : start + 4] if 0x30 <= byte <= 0x39)
            asked = log1p(cues.tokens_asked(int(digits), cue - forms))
            rows[row][_ASKED_AT] = max(rows[row][_ASKED_AT], asked)
            rows[row][_ASKED_AT + 1] = 1.0
    if any(bounds[at + 1] > bounds[at] for at in range(_OUTPUT, len(bounds) - 1, 3)):
        for at, cue in _cues(cues.OUTPUT_TABLE, len(cues.OUTPUT_CUES), found):
            row, part = divmod(bisect_right(bounds, at if at < words else at - words) - 1, 3)
            if part == _OUTPUT:
                rows[row][_OUTPUT_AT + cue] = 1.0


def _cues(table: cues.CueTable, forms: int, found: Words) -> list[tuple[int, int]]:
    """Hashes that are cues, and the cues; in long texts each of the first `forms` once a text."""
    if found.count < _MANY_WORDS:
        return table.find(found.hashes)
    at, cue = table.find_many(found.hashes)
    text = np.searchsorted(found.bounds, np.where(at < found.count, at, at - found.count), side="right")
    form = cue < forms
    last = np.full((len(found.bounds) + 1, forms), -1)
    last[text[form], cue[form]] = at[form]
    told = last >= 0
    once = zip(last[told].tolist(), told.nonzero()[1].tolist(), strict=True)
    return [*once, *zip(at[~form].tolist(), cue[~form].tolist(), strict=True)]


def _count(value: int) -> float:
    return float(value) if 0 <= value <= _MOST_COUNTED else 0.0 if value < 0 else float(_MOST_COUNTED)
