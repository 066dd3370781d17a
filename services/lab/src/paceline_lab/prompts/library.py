"""Reads the prompt files and refuses what is malformed."""

import functools
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from paceline_core.slo import SloClass
from paceline_lab.prompts.model import Family, Library, Message, Prompt, TaskCall, TaskPrompt

_CLASSES = {"latency": SloClass.LATENCY, "deadline": SloClass.DEADLINE}


class PromptError(ValueError):
    """A prompt file is malformed; the message names the file and the prompt."""


@functools.cache
def load_library() -> Library:
    """All prompts of the package, in the order of files and entries. Raises PromptError."""
    prompts: list[Prompt] = []
    tasks: list[TaskPrompt] = []
    folder = resources.files("paceline_lab.prompts") / "data"
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            _read_file(file, prompts, tasks)
    _unique([prompt.prompt_id for prompt in prompts] + [task.prompt_id for task in tasks])
    return Library(tuple(prompts), tuple(tasks))


def _read_file(file: Traversable, prompts: list[Prompt], tasks: list[TaskPrompt]) -> None:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        family = Family(document["family"])
        sources: dict[str, str] = document.get("sources", {})
        if family is Family.TASK:
            tasks += [_task(entry) for entry in document["tasks"]]
        else:
            slo_class = _CLASSES[document["slo_class"]]
            prompts += [_prompt(entry, family, slo_class, sources) for entry in document["prompts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PromptError(f"{file.name}: {error!r}") from error


def _prompt(entry: dict[str, Any], family: Family, slo_class: SloClass, sources: dict[str, str]) -> Prompt:
    """A prompt; `source` names a text of the file, or several, that go below the question."""
    named = entry.get("source", [])
    parts = [str(entry["text"]), *(sources[name] for name in ([named] if isinstance(named, str) else named))]
    text = "\n\n".join(part.strip() for part in parts)
    messages = [Message("system", str(entry["system"]).strip())] if "system" in entry else []
    for turn in entry.get("history", ()):
        messages += [
            Message("user", str(turn["user"]).strip()),
            Message("assistant", str(turn["assistant"]).strip()),
        ]
    messages.append(Message("user", text))
    chosen = _CLASSES[entry["slo_class"]] if "slo_class" in entry else slo_class
    return Prompt(str(entry["id"]), family, chosen, int(entry["max_tokens"]), tuple(messages))


def _task(entry: dict[str, Any]) -> TaskPrompt:
    calls: list[TaskCall] = []
    known: set[str] = set()
    for number, stage in enumerate(entry["stages"]):
        calls_here = [
            TaskCall(str(call["name"]), number, int(call["max_tokens"]), str(call["text"]).strip())
            for call in stage
        ]
        for call in calls_here:
            missing = set(call.references) - known
            if missing:
                raise ValueError(
                    f"{entry['id']}: {call.name} uses {sorted(missing)}, which no earlier stage answers"
                )
        known |= {call.name for call in calls_here}
        calls += calls_here
    return TaskPrompt(str(entry["id"]), tuple(calls))


def _unique(ids: list[str]) -> None:
    seen: set[str] = set()
    for prompt_id in ids:
        if prompt_id in seen:
            raise PromptError(f"{prompt_id}: the id is used twice")
        seen.add(prompt_id)
