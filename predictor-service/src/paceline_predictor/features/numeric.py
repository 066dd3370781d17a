"""Features that are numbers: what the request declares, the form its text asks for, and how far the answer is."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_predictor.features import cues, progress
from paceline_predictor.features.words import IndexArray, Words
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
_MAX_COUNT: Final = float(1 << 24)


def plain(
    question: LengthQuestion, head: bytes, tail: bytes, output: bytes, hashes: list[int]
) -> list[float]:
    """One row of NUMERIC, but for the cues that `add_cues` finds. `hashes`: of the words of `output`."""
    end = (tail or head)[-64:].rstrip()
    texts = head + tail
    generated = _count(question.generated_tokens)
    limit = _count(question.max_tokens)
    temperature = float(question.temperature)
    return [
        math.log1p(_count(question.prompt_tokens)),
        math.log1p(limit),
        0.0 if limit else 1.0,
        min(max(temperature, 0.0), 2.0) if math.isfinite(temperature) else 0.0,
        math.log1p(_count(question.turn_index)),
        1.0 if question.has_tools else 0.0,
        1.0 if question.wants_json else 0.0,
        math.log1p(_count(question.task_stage)),
        1.0 if question.app else 0.0,
        math.log1p(len(head)),
        1.0 if tail else 0.0,
        math.log1p(texts.count(b"\n")),
        math.log1p(texts.count(b"?")),
        math.log1p(texts.count(b"```")),
        math.log1p(texts.count(b"{")),
        math.log1p(texts.count(b"\\")),
        math.log1p(texts.count(b"=")),
        0.0 if texts.isascii() else 1.0,
        1.0 if end.endswith(b"?") else 0.0,
        1.0 if end.endswith(b":") else 0.0,
        1.0 if end.endswith((b"```", b"}", b";", b")", b'"""')) else 0.0,
        0.0,
        0.0,
        *_NO_CUES,
        1.0 if generated else 0.0,
        math.log1p(generated),
        math.log1p(max(limit - generated, 0.0)) if limit and generated else 0.0,
        *progress.progress(output, hashes),
        *_NO_OUTPUT_CUES,
    ]


_NO_CUES: Final = (0.0,) * len(cues.PROMPT_CUES)
_NO_OUTPUT_CUES: Final = (0.0,) * len(cues.OUTPUT_CUES)


def add_cues(numeric: NDArray[np.float32], found: Words, joint: bytes) -> None:
    """Set the cues of the prompts and outputs, three texts per row of `numeric` [N, F] (head, tail, output).

    A pair belongs to the text of its first word. Of the numbers that a prompt asks for the first few are read.
    """
    word, text, cue = _found(cues.PROMPT_TABLE, found)
    prompt = text % 3 != 2
    form = prompt & (cue < len(cues.PROMPT_CUES))
    numeric[text[form] // 3, _PROMPT_AT + cue[form]] = 1.0
    asked = np.flatnonzero(prompt & (cue >= len(cues.PROMPT_CUES)))
    if len(asked) > _MOST_NUMBERS:
        rows = text[asked] // 3
        asked = asked[np.arange(len(rows)) - np.searchsorted(rows, rows) < _MOST_NUMBERS]
    for at, row_of, unit in zip(
        word[asked].tolist(), text[asked].tolist(), (cue[asked] - len(cues.PROMPT_CUES)).tolist(), strict=True
    ):
        start = int(found.starts[at])
        digits = bytes(byte for byte in joint[start : start + 4] if 0x30 <= byte <= 0x39)
        row = numeric[row_of // 3]
        row[_ASKED_AT] = max(row[_ASKED_AT], math.log1p(cues.tokens_asked(int(digits), unit)))
        row[_ASKED_AT + 1] = 1.0
    if (found.bounds[3::3] > found.bounds[2::3]).any():
        _, text, cue = _found(cues.OUTPUT_TABLE, found)
        output = text % 3 == 2
        numeric[text[output] // 3, _OUTPUT_AT + cue[output]] = 1.0


def _found(table: cues.CueTable, found: Words) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Words at which a cue begins, the texts they are in, and the cues."""
    at, cue = table.find(found.hashes)
    word = np.where(at < found.count, at, at - found.count)
    return word, np.searchsorted(found.bounds, word, side="right") - 1, cue


def _count(value: int) -> float:
    return min(max(float(value), 0.0), _MAX_COUNT)
