"""Agent sessions of the LMCache trace: chains of calls; only their starts are stamped.

The tau-bench part is left out: a call that answers with a tool call has an empty output there.
"""

from itertools import pairwise
from pathlib import Path

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import grouped, number
from paceline_lab.tasks.record import TaskRecord


def read(folder: Path) -> list[TaskRecord]:
    """One task a session."""
    records = []
    for (workload, session), rows in grouped(folder / "calls.csv.gz", "workload", "session").items():
        if workload == "taubench":
            continue
        rows.sort(key=lambda row: int(row["call"]))
        calls = tuple(
            Call(
                str(i),
                stage=i,
                input_tokens=int(number(row["input_tokens"])),
                output_tokens=int(number(row["output_tokens"])),
            )
            for i, row in enumerate(rows)
        )
        starts = [number(row["t_s"]) for row in rows]
        steps = [b - a for a, b in pairwise(starts)]
        # The end of the last call is not known: it is given the pace of the others.
        pace = sum(steps) / max(sum(call.output_tokens for call in calls[:-1]), 1)
        stage_s = (*steps, pace * calls[-1].output_tokens)
        records.append(TaskRecord(workload, session, TaskGraph(workload, calls), stage_s))
    return records
