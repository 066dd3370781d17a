"""Calls of agents: the LMCache agent traces and tau-bench. A session is what a split must not part."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from paceline_lab.lengths.example import Example, Turn, chatml, head_and_tail, text_id
from paceline_lab.lengths.loaders.reading import csv_rows, json_rows, tokens
from paceline_predictor.model import LengthQuestion

_CEILING_TOKENS: Final = 10_000
_FAMILIES: Final = {"taubench": "tools"}
_TOOL_SCHEMA_TOKENS: Final = 2_500
_CALL_WEIGHT: Final = 0.5
"""Calls of a session are alike."""


LMCACHE: Final = "lmcache-agent-trace"


def lmcache_sessions(folder: Path) -> dict[str, str]:
    """By the id of a session's first input, as it is sent to be answered alone: the `prompt_id` of its examples."""
    return {
        text_id(row["new_input"].removeprefix("user: ")): f"lmcache/{row['s']}"
        for row in json_rows(folder / "calls_text.jsonl.xz")
        if row["i"] == 0
    }


def lmcache(folder: Path) -> Iterator[Example]:
    """69 sessions of three agents.

    The source cuts what a call shares with an earlier one of its session, and does not say which: the latest that is
    long enough is taken. Calls without an input, and those whose answer was a tool call and is empty in the source, are
    left out.
    """
    inputs: defaultdict[str, list[str]] = defaultdict(list)
    for row in json_rows(folder / "calls_text.jsonl.xz"):
        session = inputs[row["s"]]
        shared = int(row["lcp_chars"])
        earlier = next((text for text in reversed(session) if len(text) >= shared), "")
        text = earlier[:shared] + row["new_input"]
        session.append(text)
        length, prompt_tokens = tokens(row["out_tok"]), tokens(row["in_tok"])
        if not length or not prompt_tokens:
            continue
        head, tail = head_and_tail(text)
        family = _FAMILIES.get(row["f"], "agent")
        question = LengthQuestion(
            model=f"lmcache-{row['f']}",
            app=family,
            prompt_head=head,
            prompt_tail=tail,
            prompt_tokens=prompt_tokens,
            task_stage=int(row["i"]),
            has_tools=family == "tools",
        )
        yield Example(
            question,
            length,
            length >= _CEILING_TOKENS,
            LMCACHE,
            family,
            f"lmcache/{row['s']}",
            _CALL_WEIGHT,
            row.get("output") or "",
        )


def tau_bench(folder: Path) -> Iterator[Example]:
    """GPT-4o as an airline's agent: each of its turns, a text or tool calls, with the conversation before it."""
    lengths: dict[tuple[str, str, int], dict[str, str]] = {
        (row["task_id"], row["trial"], int(row["call"])): row
        for row in csv_rows(folder / "gpt4o_airline_calls.csv.gz")
    }
    with gzip.open(folder / "system_prompt.txt.gz", "rt", encoding="utf-8") as file:
        system = file.read()
    for run in json_rows(folder / "gpt4o_airline_text.jsonl.xz"):
        turns: list[Turn] = [("system", system)]
        call = 0
        for message in run["traj"]:
            text = _text(message)
            if message["role"] == "assistant":
                row = lengths.get((str(run["task_id"]), str(run["trial"]), call))
                length = tokens(row["output_tokens"]) if row else None
                if row and length:
                    yield _tau_call(run, turns, call, row, length, text)
                call += 1
            turns.append((message["role"], text))


def _text(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return (message.get("content") or "") + "".join(json.dumps(call) for call in calls)


def _tau_call(
    run: dict[str, Any], turns: list[Turn], call: int, row: dict[str, str], length: int, output: str
) -> Example:
    head, tail = head_and_tail(chatml(turns))
    question = LengthQuestion(
        model="gpt-4o",
        app="tools",
        prompt_head=head,
        prompt_tail=tail,
        prompt_tokens=(tokens(row["input_tokens_excl_tool_schema"]) or 0) + _TOOL_SCHEMA_TOKENS,
        turn_index=sum(role == "user" for role, _ in turns),
        has_tools=True,
        task_stage=call,
    )
    return Example(
        question, length, False, "tau-bench", "tools", f"tau/{run['task_id']}", _CALL_WEIGHT, output
    )
