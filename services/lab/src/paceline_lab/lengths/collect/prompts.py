"""Prompts of the permissive public sets, each as the one text that is sent as a user's message.

A prompt's id is the SHA-1 of that text: what was collected can be joined with the prompts again, and only the id has
to be kept beside the output.
"""

import hashlib
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of one set."""

    prompt_id: str
    """SHA-1 of `text` (UTF-8), hexadecimal."""
    source: str
    """Name of the set."""
    family: str
    """Kind of task: chat, instruction, maths, code, tools, agent."""
    text: str


@dataclass(frozen=True)
class PromptSets:
    """What was found."""

    prompts: tuple[Prompt, ...]
    """Each text once: of equal texts the first set keeps it."""
    missing: tuple[str, ...]
    """Sets that were asked for and are not there, with what is missing."""


Rows = Iterator[tuple[str, str]]
"""Pairs of family and text."""


def prompt_id(text: str) -> str:
    """The id of a prompt's text."""
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def load_prompts(data: Path, sets: Sequence[str] = ()) -> PromptSets:
    """Prompts of the named sets (none named: all that `SETS` lists) under `data`.

    Raises ValueError for a set that does not exist. Sets that are not on disk are named in `missing`.
    """
    if unknown := sorted(set(sets) - set(SETS)):
        raise ValueError(f"no such prompt set: {', '.join(unknown)}; there are {', '.join(SETS)}")
    found: dict[str, Prompt] = {}
    missing = []
    for source in sets or SETS:
        try:
            for family, text in SETS[source](data / source):
                if text.strip():
                    key = prompt_id(text)
                    found.setdefault(key, Prompt(key, source, family, text))
        except FileNotFoundError as error:
            missing.append(f"{source}: no file {error.filename}")
    return PromptSets(tuple(found.values()), tuple(missing))


def tool_text(question: str, functions: object) -> str:
    """A question with the functions that may be called to answer it."""
    return f"{question}\n\nAnswer with calls of these functions:\n{json.dumps(functions, ensure_ascii=False)}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _arena_hard(folder: Path) -> Rows:
    return (("chat", row["prompt"]) for row in _lines(folder / "answers.jsonl.xz"))


def _self_instruct(folder: Path) -> Rows:
    return (("instruction", row["prompt"]) for row in _lines(folder / "predictions.jsonl.xz"))


def _gsm8k(folder: Path) -> Rows:
    for name in ("test_4models.jsonl.xz", "train_prompts_human.jsonl.xz"):
        for row in _lines(folder / name):
            yield "maths", row["prompt"]


_REASONING: Final = {"ifeval": "instruction", "aime24": "maths", "aime25": "maths"}


def _reasoning(folder: Path) -> Rows:
    for row in _lines(folder / "prompts.jsonl.xz"):
        yield _REASONING.get(row["set"], "code"), row["prompt"]


def _bfcl(folder: Path) -> Rows:
    for row in _lines(folder / "prompts.jsonl.xz"):
        yield "tools", tool_text(row["question"], row["functions"])


def _code(folder: Path) -> Rows:
    """HumanEval and MBPP; the statements of contest sites are left out."""
    for row in _lines(folder / "reflexion_code.jsonl.xz"):
        if row["bench"].startswith(("humaneval", "mbpp")):
            yield "code", row["prompt"]


def _lmcache(folder: Path) -> Rows:
    """First calls alone: of later ones the shared part of the input is cut."""
    for row in _lines(folder / "calls_text.jsonl.xz"):
        if row["i"] == 0 and not row["lcp_chars"]:
            yield "agent", row["new_input"].removeprefix("user: ")


SETS: Final[dict[str, Callable[[Path], Rows]]] = {
    "arena-hard": _arena_hard,
    "self-instruct-eval": _self_instruct,
    "gsm8k": _gsm8k,
    "reasoning-prompts": _reasoning,
    "bfcl-toolcalls": _bfcl,
    "code-responses": _code,
    "lmcache-agent-trace": _lmcache,
}
"""Reader of each set, all under permissive licences."""
