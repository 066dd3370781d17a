"""Which examples are trained on and which are scored: by prompt, and with whole model families or sources left out."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_lab.lengths.example import Example

IndexArray = NDArray[np.int64]

LEAST_ROWS: Final = 20
"""Fewer left-out rows than these are no test."""


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to score; no prompt is in both."""

    name: str
    train: IndexArray
    test: IndexArray


def fold_of(prompt_id: str, folds: int, seed: int = 0) -> int:
    """The fold of a prompt: of its hash, so that it does not depend on what else is in the corpus."""
    digest = hashlib.sha256(f"{seed} {prompt_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % folds


def by_prompt(examples: Sequence[Example], folds: int = 5, seed: int = 0) -> list[Split]:
    """Unseen prompts of known models: each fold's prompts are scored once. Raises ValueError under two folds."""
    if folds < 2:
        raise ValueError("a split by prompt needs two folds or more")
    fold = np.array([fold_of(example.prompt_id, folds, seed) for example in examples], dtype=np.int64)
    return [
        Split(f"prompts {k + 1}/{folds}", np.flatnonzero(fold != k), np.flatnonzero(fold == k))
        for k in range(folds)
    ]


_FAMILIES: Final = (
    ("gpt-4", r"^gpt-?4"),
    ("gpt-3.5", r"^(gpt-3\.5|chatgpt)"),
    ("gpt-3 gsm8k", r"^gsm8k-"),
    ("gpt-3", r"^(text-)?davinci"),
    ("smollm", r"smollm"),
    ("lmcache", r"^lmcache-"),
    ("claude", r"claude"),
    ("gemini", r"gemini|gemma"),
    ("llama", r"llama|hermes|functionary|vicuna"),
    ("mistral", r"mi[sx]tral|zephyr"),
    ("qwen", r"qwen"),
)


def model_family(model: str) -> str:
    """The family of a model by its name; a name of no known family is one by itself."""
    lowered = model.lower()
    return next((family for family, pattern in _FAMILIES if re.search(pattern, lowered)), model)


def leave_out_model_family(examples: Sequence[Example], *, unseen_prompts: bool = True) -> list[Split]:
    """Each family of models in turn is scored by what was learned from the others.

    With `unseen_prompts` the prompts that are scored are not trained on either, though other models answered them.
    """
    return _left_out("model", [model_family(e.question.model) for e in examples], examples, unseen_prompts)


def leave_out_source(examples: Sequence[Example]) -> list[Split]:
    """Each data set in turn."""
    return _left_out("source", [example.source for example in examples], examples, True)


def leave_out_family(examples: Sequence[Example]) -> list[Split]:
    """Each kind of task in turn."""
    return _left_out("family", [example.family for example in examples], examples, True)


def _left_out(
    kind: str, groups: Sequence[str], examples: Sequence[Example], unseen_prompts: bool
) -> list[Split]:
    group = np.array(groups)
    prompts = np.array([example.prompt_id for example in examples])
    splits = []
    for name in sorted(set(groups)):
        test = np.flatnonzero(group == name)
        train = np.flatnonzero(group != name)
        if unseen_prompts:
            train = train[~np.isin(prompts[train], prompts[test])]
        if len(test) >= LEAST_ROWS and len(train) >= LEAST_ROWS:
            splits.append(Split(f"{kind} {name}", train, test))
    return splits
