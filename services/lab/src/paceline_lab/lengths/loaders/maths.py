"""Grade-school mathematics: GSM8K."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders.reading import json_rows, single_turn, tokens

_MODELS: Final = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
"""What people wrote ("human") is no model's answer and stays out."""


def gsm8k(folder: Path) -> Iterator[Example]:
    """1,319 prompts, 4 models."""
    for row in json_rows(folder / "test_4models.jsonl.xz"):
        answers = {
            model: length for model in _MODELS if (length := tokens(row.get(f"{model}_tok"))) is not None
        }
        for model, length in answers.items():
            yield single_turn(
                row["prompt"],
                model=f"gsm8k-{model.replace('_', '-')}",
                source="gsm8k",
                family="maths",
                output_tokens=length,
                prompt_tokens=tokens(row["in_tok"]) or 0,
                weight=len(answers) ** -0.5,
                output=row.get(model) or "",
            )
