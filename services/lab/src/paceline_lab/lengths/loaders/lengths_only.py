"""Lengths of answers to prompts that are not public: numbers for calibration, with little weight."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders.reading import csv_rows, tokens
from paceline_predictor.model import LengthQuestion

_ROWS: Final = 5_000
"""At most so many of each set, evenly taken."""
_WEIGHT: Final = 0.05
_LMSYS_CAP_TOKENS: Final = 512


def wildbench(folder: Path) -> Iterator[Example]:
    """15 models on 1,024 tasks of real users."""
    for row in csv_rows(folder / "wildbench_output_tokens_by_model.csv.gz"):
        for task, value in row.items():
            if task != "model" and (length := tokens(value)):
                yield _example("wildbench", "chat", row["model"], f"wildbench/{task}", 0, length)


def lmsys(folder: Path) -> Iterator[Example]:
    """Vicuna 13B, cut at 512 tokens."""
    rows = _thinned(csv_rows(folder / "lmsys_per_model_output_lengths.csv.gz"))
    for number, row in rows:
        if length := tokens(row["output_tokens"]):
            yield _example(
                "lmsys", "chat", row["model"], f"lmsys/{number}", 0, length, length >= _LMSYS_CAP_TOKENS
            )


def sharegpt(folder: Path) -> Iterator[Example]:
    """Turns of ChatGPT."""
    return _pairs(folder / "sharegpt_8k_llama2_tokens.csv.gz", "sharegpt", "chat", "chatgpt")


def arxiv(folder: Path) -> Iterator[Example]:
    """Abstracts for papers: how long summaries are that people wrote."""
    return _pairs(folder / "arxiv_summarization_llama2_tokens.csv.gz", "arxiv", "summary", "arxiv-abstract")


_ALPACA_CAP_TOKENS: Final = 512


def alpaca(folder: Path) -> Iterator[Example]:
    """Vicuna 7B, each prompt answered at four temperatures and cut at 512: how much chance there is. No licence."""
    for number, row in _thinned(csv_rows(folder / "alpaca_vicuna7b_lengths_4temps.csv.gz"), _ROWS // 4):
        for column, value in row.items():
            if column.startswith("t") and (length := tokens(value)):
                example = _example(
                    "alpaca",
                    "instruction",
                    "vicuna-7b",
                    f"alpaca/{number}",
                    0,
                    length,
                    length >= _ALPACA_CAP_TOKENS,
                )
                question = dataclasses.replace(example.question, temperature=float(column[1:]))
                yield dataclasses.replace(example, question=question, permissive=False)


def _pairs(path: Path, source: str, family: str, model: str) -> Iterator[Example]:
    for number, row in _thinned(csv_rows(path)):
        if length := tokens(row["output_tokens"]):
            yield _example(
                source, family, model, f"{source}/{number}", tokens(row["input_tokens"]) or 0, length
            )


def _thinned(rows: Iterable[dict[str, str]], most: int = _ROWS) -> Iterator[tuple[int, dict[str, str]]]:
    every = list(rows)
    step = max(1, -(-len(every) // most))
    return ((number, every[number]) for number in range(0, len(every), step))


def _example(
    source: str,
    family: str,
    model: str,
    prompt_id: str,
    prompt_tokens: int,
    length: int,
    censored: bool = False,
) -> Example:
    question = LengthQuestion(model=model, app=family, prompt_tokens=prompt_tokens)
    return Example(question, length, censored, source, family, prompt_id, _WEIGHT)
