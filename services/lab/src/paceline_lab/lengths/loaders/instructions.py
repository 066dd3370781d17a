"""Questions of people to assistants: Arena-Hard (chat) and the self-instruct evaluation (instructions)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders.reading import json_rows, shared_weights, single_turn, tokens

_OPENAI_CAP_TOKENS: Final = 800
"""The completions were cut at 1,024 tokens of the models' own vocabulary, which are 800 to 1,900 of the one counted
with: from here on an answer is taken to have been cut."""


def arena_hard(folder: Path) -> Iterator[Example]:
    """500 prompts, 3 models."""
    rows = list(json_rows(folder / "answers.jsonl.xz"))
    weights = shared_weights(row["prompt"] for row in rows)
    for row in rows:
        if (length := tokens(row["out_tok"])) is not None:
            yield single_turn(
                row["prompt"],
                model=row["model"],
                source="arena-hard",
                family="chat",
                output_tokens=length,
                prompt_tokens=tokens(row["in_tok"]) or 0,
                weight=weights[row["prompt"]],
                output=row.get("response") or "",
            )


def self_instruct(folder: Path) -> Iterator[Example]:
    """252 prompts, 5 completion models."""
    rows = list(json_rows(folder / "predictions.jsonl.xz"))
    weights = shared_weights(row["prompt"] for row in rows)
    for row in rows:
        if (length := tokens(row["out_tok"])) is not None:
            yield single_turn(
                row["prompt"],
                model=row["model"],
                source="self-instruct-eval",
                family="instruction",
                output_tokens=length,
                censored=length >= _OPENAI_CAP_TOKENS,
                prompt_tokens=tokens(row["in_tok"]) or 0,
                weight=weights[row["prompt"]],
                output=row.get("response") or "",
            )
