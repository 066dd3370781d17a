"""Prompts as data: single calls, and tasks of several calls."""

import re
from dataclasses import dataclass
from enum import StrEnum

from paceline_core.slo import SloClass

# {name} of an earlier call of the same task, replaced by its answer.
REFERENCE = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class Family(StrEnum):
    """What a prompt asks for."""

    CHAT = "chat"
    EXTRACTION = "extraction"
    CODE = "code"
    MATHS = "maths"
    SQL = "sql"
    SUMMARY = "summary"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One call. `max_tokens` bounds the answer."""

    prompt_id: str
    family: Family
    slo_class: SloClass
    max_tokens: int
    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """All messages, one after the other."""
        return "\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class TaskCall:
    """One call of a task. Calls of one stage run side by side; `template` may use answers of earlier stages."""

    name: str
    stage: int
    max_tokens: int
    template: str

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the calls whose answers it is built from."""
        return tuple(dict.fromkeys(REFERENCE.findall(self.template)))

    def render(self, answers: dict[str, str], *, limit_chars: int) -> str:
        """The prompt, with answers cut to `limit_chars` so that a long one cannot overflow the context."""
        return REFERENCE.sub(lambda found: answers[found.group(1)][:limit_chars].strip(), self.template)


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A compound job: its calls in order of stage."""

    prompt_id: str
    calls: tuple[TaskCall, ...]

    @property
    def stages(self) -> int:
        """Stages, one after the other."""
        return max(call.stage for call in self.calls) + 1

    def stage(self, number: int) -> tuple[TaskCall, ...]:
        """Calls of a stage, from 0."""
        return tuple(call for call in self.calls if call.stage == number)


@dataclass(frozen=True, slots=True)
class Library:
    """All prompts."""

    prompts: tuple[Prompt, ...]
    tasks: tuple[TaskPrompt, ...]

    @property
    def size(self) -> int:
        """Single prompts and calls of tasks."""
        return len(self.prompts) + sum(len(task.calls) for task in self.tasks)

    def of_family(self, family: Family) -> tuple[Prompt, ...]:
        """Single prompts of a family."""
        return tuple(prompt for prompt in self.prompts if prompt.family is family)

    def of_class(self, slo_class: SloClass) -> tuple[Prompt, ...]:
        """Single prompts of a class."""
        return tuple(prompt for prompt in self.prompts if prompt.slo_class is slo_class)
