"""Coding sessions: a task is what happens between a user's message and the end of the agent's turn; stamped.

A sub-agent is a nested conversation that its parent waits for: its calls are stages of their own.
"""

from pathlib import Path
from typing import Any

from paceline_core.tasks.graph import Call, TaskGraph
from paceline_lab.tasks.loaders.rows import json_rows
from paceline_lab.tasks.record import TaskRecord

APP = "coding-agent"
_MAX_STAGES = 2000
_TASKS_A_SESSION = 4
"""The first turns of a session: long sessions must not outvote the others."""


def read(folder: Path) -> list[TaskRecord]:
    """Tasks of all sessions."""
    records = []
    for session in json_rows(folder / "sessions.jsonl.xz"):
        turns: list[list[tuple[Call, float]]] = [[]]
        for call, seconds, end in _calls(session["requests"], ""):
            turns[-1].append((call, seconds))
            if end:
                turns.append([])
        if turns[-1]:
            turns.pop()  # cut by the end of the record: how it went on is not known
        for turn in [t for t in turns if 0 < len(t) <= _MAX_STAGES][:_TASKS_A_SESSION]:
            calls = tuple(_at_stage(call, i) for i, (call, _) in enumerate(turn))
            records.append(
                TaskRecord(
                    "coding-agent", str(session["id"]), TaskGraph(APP, calls), tuple(s for _, s in turn)
                )
            )
    return records


def _calls(requests: list[dict[str, Any]], prefix: str) -> list[tuple[Call, float, bool]]:
    """Calls with their seconds (the pause before them included), and whether the turn ends with them."""
    calls: list[tuple[Call, float, bool]] = []
    for row in requests:
        if "requests" in row:  # a conversation within this one, which waits for it
            inner = _calls(row["requests"], f"{prefix}{row.get('kind', 'sub')}/")
            calls.extend((call, seconds, False) for call, seconds, _ in inner)
            continue
        # The pause before the first call of a turn is the user's, not the task's.
        new_turn = not calls or calls[-1][2]
        pause = 0.0 if new_turn else float(row.get("think") or 0.0)
        call = Call(
            "",
            actor=prefix + str(row.get("model", "")),
            input_tokens=int(row["inp"]),
            output_tokens=int(row["out"]),
        )
        calls.append((call, pause + float(row.get("api") or 0.0), row.get("stop") == "end_turn"))
    return calls


def _at_stage(call: Call, stage: int) -> Call:
    return Call(
        str(stage),
        stage=stage,
        actor=call.actor,
        input_tokens=call.input_tokens,
        output_tokens=call.output_tokens,
    )
