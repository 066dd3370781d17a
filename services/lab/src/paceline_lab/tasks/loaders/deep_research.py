"""JITServe's deep-research DAGs: stages in order, calls of a stage side by side; no stamps."""

from pathlib import Path

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import json_rows
from paceline_lab.tasks.record import TaskRecord


def read(folder: Path) -> list[TaskRecord]:
    """One task a line; the roles of the stages follow from their place."""
    records = []
    for row in json_rows(folder / "deepresearch_training_subset.jsonl.gz"):
        calls = []
        last = len(row["stages"]) - 1
        for stage, group in enumerate(row["stages"]):
            for number, call in enumerate(group):
                calls.append(
                    Call(
                        f"{stage}.{number}",
                        stage=stage,
                        actor=_role(stage, last),
                        input_tokens=int(call["input_tokens"]),
                        output_tokens=int(call["output_tokens"]),
                    )
                )
        records.append(
            TaskRecord("deep-research", str(row["request_id"]), TaskGraph("deep-research", tuple(calls)))
        )
    return records


def _role(stage: int, last: int) -> str:
    if stage == 0:
        return "generate-query"
    if stage == last:
        return "answer"
    return "web-research" if stage % 2 else "reflection"
