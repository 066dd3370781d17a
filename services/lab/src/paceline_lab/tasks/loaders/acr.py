"""AutoCodeRover on SWE-bench-Lite: chains of calls with end times. Measuring only: the licence is not clear."""

from itertools import pairwise
from pathlib import Path

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import grouped, number
from paceline_lab.tasks.record import TaskRecord


def read(folder: Path) -> list[TaskRecord]:
    """One task a run of a problem; runs of one problem stay together."""
    records = []
    for (run, problem), rows in grouped(folder / "acr_calls.csv.gz", "run", "task").items():
        rows.sort(key=lambda row: int(row["call"]))
        # Repetitions of one configuration are one application.
        app = "acr" if run.startswith("acr-run") else run
        calls = tuple(
            Call(
                str(i),
                stage=i,
                actor=app,
                input_tokens=int(number(row["input_tokens"])),
                output_tokens=int(number(row["output_tokens"])),
            )
            for i, row in enumerate(rows)
        )
        ends = [number(row["t_end_s"]) for row in rows]
        steps = [b - a for a, b in pairwise(ends)]
        # The clock starts at the end of the first call, which is given the pace of the others.
        pace = sum(steps) / max(sum(call.output_tokens for call in calls[1:]), 1)
        stage_s = (pace * calls[0].output_tokens, *steps)
        records.append(TaskRecord(app, problem, TaskGraph(app, calls), stage_s))
    return records
