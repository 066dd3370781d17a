"""ChatDev: teams of agents in phases, chains with stamps. Measuring only: the data is non-commercial."""

from pathlib import Path

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import grouped, number
from paceline_lab.tasks.record import TaskRecord


def read(folder: Path) -> list[TaskRecord]:
    """One task a run."""
    records = []
    for (run,), rows in grouped(folder / "chatdev_calls.csv.gz", "run").items():
        rows.sort(key=lambda row: int(row["call"]))
        calls = tuple(
            Call(
                str(i),
                stage=i,
                actor=f"{row['phase']}/{row['assistant_role']}",
                input_tokens=int(number(row["prompt_tokens"])),
                output_tokens=int(number(row["completion_tokens"])),
            )
            for i, row in enumerate(rows)
        )
        stage_s = tuple(max(number(row["t_recv_s"]) - number(row["t_send_s"]), 0.0) for row in rows)
        records.append(TaskRecord("chatdev", run, TaskGraph("chatdev", calls), stage_s))
    return records
