"""Rows of compressed files."""

import csv
import gzip
import json
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from paceline_lab.lengths.example import Example, as_sent, head_and_tail, template_tokens, text_id
from paceline_predictor.model import LengthQuestion


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a `.jsonl.xz` file. Raises FileNotFoundError, and ValueError that names the file and line."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if isinstance(row, dict):
                yield row


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a `.csv.gz` file by their header. Raises FileNotFoundError."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def tokens(value: object) -> int | None:
    """A count of tokens; None where the row has none."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return int(float(value))
        except (ValueError, OverflowError):
            return None
    return None


def shared_weights(prompts: Iterable[str]) -> dict[str, float]:
    """Weight of each row of a prompt: 1 over the square root of how many rows it has."""
    return {prompt: rows**-0.5 for prompt, rows in Counter(prompts).items()}


def single_turn(
    prompt: str,
    *,
    model: str,
    source: str,
    family: str,
    output_tokens: int,
    prompt_tokens: int,
    weight: float,
    output: str = "",
    censored: bool = False,
    permissive: bool = True,
    temperature: float = 0.0,
    has_tools: bool = False,
) -> Example:
    """An example of one prompt and its answer."""
    sent = as_sent(prompt, f"{model} {prompt}")
    head, tail = head_and_tail(sent)
    question = LengthQuestion(
        model=model,
        app=family,
        prompt_head=head,
        prompt_tail=tail,
        prompt_tokens=prompt_tokens + template_tokens(prompt, sent),
        temperature=temperature,
        has_tools=has_tools,
    )
    return Example(
        question,
        max(1, output_tokens),
        censored,
        source,
        family,
        text_id(prompt),
        weight,
        output,
        permissive,
    )
