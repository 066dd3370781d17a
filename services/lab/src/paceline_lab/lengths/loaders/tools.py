"""Function calls (BFCL) and text-to-SQL: lengths of answers whose licence is unclear, so measured only."""

from collections.abc import Iterator
from pathlib import Path

from paceline_lab.lengths.collect.prompts import tool_text
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders.reading import csv_rows, json_rows, single_turn, tokens


def bfcl(folder: Path) -> Iterator[Example]:
    """1,000 prompts with their functions, 71 models."""
    prompts = {
        f"{row['cat']}_{row['i']}": (tool_text(row["question"], row["functions"]), tokens(row["in_tok"]) or 0)
        for row in json_rows(folder / "prompts.jsonl.xz")
    }
    for row in csv_rows(folder / "output_tokens_by_model.csv.gz"):
        for name, (prompt, prompt_tokens) in prompts.items():
            if (length := tokens(row.get(name))) is not None:
                yield single_turn(
                    prompt,
                    model=row["model"],
                    source="bfcl-toolcalls",
                    family="tools",
                    output_tokens=length,
                    prompt_tokens=prompt_tokens,
                    weight=0.1,
                    permissive=False,
                    has_tools=True,
                )


def text_to_sql(folder: Path) -> Iterator[Example]:
    """147 questions of BIRD: the SQL alone was counted, a lower bound of what was generated."""
    for row in json_rows(folder / "bird_dev_questions147_chatgpt_lengths.jsonl.xz"):
        question = f"Database: {row['db']}\nWrite a SQL query that answers the question.\n{row['question']}"
        for column, prompt in (
            ("turbo_output", question),
            ("turbo_output_kg", f"{question}\nEvidence: {row['evidence']}"),
        ):
            if length := tokens(row.get(column)):
                yield single_turn(
                    prompt,
                    model="chatgpt-sql",
                    source="text-to-sql",
                    family="sql",
                    output_tokens=length,
                    prompt_tokens=len(prompt) // 4,
                    weight=0.5,
                    permissive=False,
                )
