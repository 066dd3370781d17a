"""Text-to-SQL teams (selector, detector, decomposer, refiner): a task is one turn of a dialogue; no stamps.

Measuring only: the repository states no licence. Prompts are the question, the history and what was written before.
"""

from pathlib import Path

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import csv_rows, number
from paceline_lab.tasks.record import TaskRecord

_AGENTS = ("rewriter", "selector", "detector", "decomposer", "refiner")


def read(folder: Path) -> list[TaskRecord]:
    """One task a turn; an agent that wrote nothing was not called. Turns of a dialogue stay together."""
    records = []
    for row in csv_rows(folder / "mmsql_agents.csv.gz"):
        context = int(number(row["question_tokens"]) + number(row["history_tokens"]))
        calls: list[Call] = []
        for agent in _AGENTS:
            written = int(number(row[f"{agent}_out"]))
            if written:
                calls.append(Call(agent, (), len(calls), agent, False, context, written))
                context += written
        app = f"sql-agents-{row['model']}"
        if calls:
            records.append(TaskRecord("sql-agents", row["dialog"], TaskGraph(app, tuple(calls))))
    return records
