"""The corpus that length models are trained and measured on."""

import dataclasses
import logging
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders import FOLDERS, MEASURING, TRAINING, WITHOUT_TEXT, Loader
from paceline_lab.lengths.loaders.collected import collected as load_collected
from paceline_predictor.model import LengthQuestion

__all__ = ["STEPS", "Corpus", "Example", "as_served", "load", "questions", "with_progress", "without_app"]

log = logging.getLogger(__name__)

STEPS: Final = (25, 50, 100, 200, 400, 800, 1600, 3200)
"""Tokens out at which models are asked again."""

_UNREADABLE: Final = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    lzma.LZMAError,
    zlib.error,
)
"""What a damaged file, or one of another form, makes readers raise."""
_OUTPUT_TAIL_CHARS: Final = 1024
_LIMITS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_LIMITED_SHARE: Final = 0.5
_WITHOUT_APP_SHARE: Final = 0.5


@dataclass(frozen=True)
class Corpus:
    """What was found."""

    examples: tuple[Example, ...]
    missing: tuple[str, ...]
    """What was asked for and is not there, and where it is to be had: sentences for people."""

    def permissive(self) -> "Corpus":
        """Only what models that ship may be trained on."""
        return Corpus(tuple(e for e in self.examples if e.permissive), self.missing)

    def rows_by_source(self) -> dict[str, int]:
        """How many examples each set has."""
        return dict(Counter(example.source for example in self.examples))


def load(data: Path, *, sets: Sequence[str] | None = None, collected: Path | None = None) -> Corpus:
    """The sets that are named (none named: those that models are trained on), and the outputs in `collected`.

    A set that is not there, or cannot be read, is named in `missing`. Raises ValueError for a set that does not exist.
    """
    loaders: dict[str, Loader] = {**TRAINING, **MEASURING, **WITHOUT_TEXT}
    names = tuple(TRAINING) if sets is None else tuple(sets)
    if unknown := sorted(set(names) - set(loaders)):
        raise ValueError(f"no such set: {', '.join(unknown)}; there are {', '.join(loaders)}")
    examples: list[Example] = []
    missing: list[str] = []
    for name in names:
        folder = data / FOLDERS.get(name, name)
        try:
            examples += list(loaders[name].read(folder))  # all of a set or nothing
        except FileNotFoundError as error:
            missing.append(f"{name}: there is no {error.filename}. Its source: {loaders[name].home}")
        except _UNREADABLE as error:
            missing.append(f"{name}: {folder} cannot be read ({error!r}). Its source: {loaders[name].home}")
    if collected is not None:
        try:
            own, unjoined = load_collected(collected, data)
        except FileNotFoundError as error:
            missing.append(
                f"collected outputs: there is no {error.filename}; `paceline lengths collect` makes them"
            )
        except _UNREADABLE as error:
            missing.append(
                f"collected outputs: {collected} and prompts under {data} cannot be joined ({error!r})"
            )
        else:
            examples += own
            if unjoined:
                missing.append(f"collected outputs: {unjoined} answer prompts that are not under {data}")
    for note in missing:
        log.warning("%s", note)
    return Corpus(tuple(examples), tuple(missing))


def questions(examples: Iterable[Example]) -> list[LengthQuestion]:
    """Their questions, in order."""
    return [example.question for example in examples]


def as_served(examples: Iterable[Example], seed: int = 0) -> list[Example]:
    """Training rows as requests are in service.

    Half of them carry no app tag, since live apps have other names: a model must do without. Half carry a `max_tokens`
    drawn from common limits, independent of the answer: one that is longer is cut there and becomes a censored one, so
    that a limit is learned to say nothing else. Rows that have a limit keep it.
    """
    random = np.random.default_rng(seed)
    rows = []
    for example in examples:
        without_app, limited = random.random(2) < (_WITHOUT_APP_SHARE, _LIMITED_SHARE)
        limit = int(random.choice(_LIMITS))
        question = example.question
        if without_app:
            question = dataclasses.replace(question, app="")
        row = dataclasses.replace(example, question=question)
        if limited and not question.max_tokens:
            row = _cut(row, limit)
        rows.append(row)
    return rows


def _cut(example: Example, limit: int) -> Example:
    """The example under a limit."""
    length = example.output_tokens
    return dataclasses.replace(
        example,
        question=dataclasses.replace(example.question, max_tokens=limit),
        output_tokens=min(length, limit),
        censored=example.censored or length > limit,
        output=example.output if length <= limit else example.output[: len(example.output) * limit // length],
    )


def without_app(examples: Iterable[Example]) -> list[Example]:
    """The same without app tags: a model must do without the names it was trained with."""
    return [dataclasses.replace(e, question=dataclasses.replace(e.question, app="")) for e in examples]


def with_progress(examples: Iterable[Example], steps: Sequence[int] = STEPS, seed: int = 0) -> list[Example]:
    """Questions asked again while the answer is written: one row per step that the answer outlasts.

    The step is jittered by up to a fifth, so that models learn no single numbers. The text so far is the answer's,
    cut in proportion of tokens, so answers without a known text have no rows. The rows of an answer weigh together
    what it weighs.
    """
    random = np.random.default_rng(seed)
    rows = []
    for example in examples:
        jitter = random.uniform(0.8, 1.2, len(steps))
        if not example.output:
            continue
        length = example.output_tokens
        generated = [g for step, by in zip(steps, jitter, strict=True) if (g := round(step * by)) < length]
        for g in generated:
            so_far = example.output[: len(example.output) * g // length]
            question = dataclasses.replace(
                example.question, generated_tokens=g, output_tail=so_far[-_OUTPUT_TAIL_CHARS:]
            )
            weight = example.weight / len(generated)
            rows.append(dataclasses.replace(example, question=question, weight=weight))
    return rows
