"""Programs: the runs of Reflexion on HumanEval, MBPP and LeetCode.

The source keeps the final function body alone: a lower bound of what was generated. These "models" are therefore named
apart from those that answered in full, and weigh half.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders.reading import json_rows, shared_weights, single_turn, tokens


def reflexion(folder: Path) -> Iterator[Example]:
    """HumanEval and MBPP, 4 models."""
    return _examples(folder, leetcode=False)


def leetcode(folder: Path) -> Iterator[Example]:
    """LeetCode, whose problem statements are not free."""
    return _examples(folder, leetcode=True)


def _examples(folder: Path, *, leetcode: bool) -> Iterator[Example]:
    rows: list[dict[str, Any]] = [
        row
        for row in json_rows(folder / "reflexion_code.jsonl.xz")
        if row["bench"].startswith("leetcode") is leetcode
    ]
    weights = shared_weights(row["prompt"] for row in rows)
    for row in rows:
        if length := tokens(row["out_tok"]):  # 0: the run kept no body
            yield single_turn(
                row["prompt"],
                model=f"{row['model']}-body",
                source="leetcode-responses" if leetcode else "code-responses",
                family="code",
                output_tokens=length,
                prompt_tokens=len(row["prompt"]) // 4,
                weight=weights[row["prompt"]] / 2,
                output=row.get("response") or "",
                permissive=not leetcode,
            )
