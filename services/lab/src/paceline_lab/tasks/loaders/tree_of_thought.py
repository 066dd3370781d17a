"""Tree-of-thought logs: each step proposes thoughts side by side, then values or votes on them side by side; no stamps.

The log counts tokens of the thoughts, and prompt and completion tokens of the whole problem: what the thoughts leave is
spread evenly over the value or vote samples, prompts evenly over the calls.
"""

from pathlib import Path
from typing import Any

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import json_rows
from paceline_lab.tasks.record import TaskRecord


def read(folder: Path) -> list[TaskRecord]:
    """One task a problem."""
    records = []
    for row in json_rows(folder / "tot_dags.jsonl.gz"):
        app = f"tree-of-thought-{row['task']}"
        records.append(TaskRecord(app, f"{row['task']}.{row['idx']}", TaskGraph(app, tuple(_calls(row)))))
    return records


def _calls(row: dict[str, Any]) -> list[Call]:
    steps = row["steps"]
    samples = sum(_samples(step) for step in steps)
    thoughts = sum(sum(step["new_tokens"]) for step in steps)
    judged = round(max(row["completion_tokens"] - thoughts, samples) / max(samples, 1))
    proposals = sum(_proposals(step) for step in steps)
    prompt = round(row["prompt_tokens"] / max(samples + proposals, 1))
    calls: list[Call] = []
    for step in steps:
        tokens, n = step["new_tokens"], _proposals(step)
        # A proposing call writes several thoughts: they are dealt out in turn.
        calls.extend(_call(2 * step["step"], i, "propose", prompt, sum(tokens[i::n])) for i in range(n))
        judge = "vote" if step.get("vote_samples") else "value"
        stage = 2 * step["step"] + 1
        calls.extend(_call(stage, i, judge, prompt, judged) for i in range(_samples(step)))
    return calls


def _call(stage: int, number: int, actor: str, prompt: int, written: int) -> Call:
    return Call(f"{stage}.{number}", (), stage, actor, input_tokens=prompt, output_tokens=written)


def _proposals(step: dict[str, Any]) -> int:
    return int(step.get("propose_calls") or len(step["new_tokens"]) or 1)


def _samples(step: dict[str, Any]) -> int:
    return int(step.get("value_samples") or step.get("vote_samples") or 0)
