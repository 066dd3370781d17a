"""A task as a graph of calls without text, folded into stages.

A stage is a set of calls that may run side by side. Its number is the declared one, or one more than the latest stage
among its parents, whichever is later; gaps are closed. Parents count only when they stand earlier in the list ("oldest
first"), so an unknown parent or a cycle changes nothing and costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

MAX_CALLS = 4096
"""Calls of a task that are read: more is an error of the sender."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a task, to a model or to a tool."""

    request_id: str
    """Empty: nobody depends on it."""
    parents: tuple[str, ...] = ()
    stage: int = 0
    actor: str = ""
    """Model, role or tool name."""
    tool: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    """Of a running call: so far."""
    duration_ms: float = 0.0
    """Of a tool."""
    ended: bool = True


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """A task so far, or a whole one. Raises ValueError with more than MAX_CALLS calls."""

    app: str
    calls: tuple[Call, ...]

    def __post_init__(self) -> None:
        if len(self.calls) > MAX_CALLS:
            raise ValueError(f"a task has at most {MAX_CALLS} calls, got {len(self.calls)}")


@dataclass(frozen=True, slots=True)
class Stages:
    """N stages of a task as columns, each [N]."""

    model_calls: NDArray[np.float64]
    tool_calls: NDArray[np.float64]
    input_tokens: NDArray[np.float64]
    """Largest prompt of the stage."""
    output_tokens: NDArray[np.float64]
    """All output of the stage."""
    critical_tokens: NDArray[np.float64]
    """Largest output of the stage: what it puts on the critical path."""
    tool_ms: NDArray[np.float64]
    """Longest tool of the stage, milliseconds."""
    actors: NDArray[np.uint8]
    """Code of the set of actors; 0: not known."""
    ended: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.model_calls)

    @property
    def running(self) -> bool:
        """True if the last stage has a call that has not ended."""
        return bool(len(self)) and not bool(self.ended[-1])

    def first(self, count: int) -> "Stages":
        """The stages up to `count`."""
        return Stages(*(getattr(self, name)[:count] for name in self.__slots__))

    def begun(self, count: int) -> "Stages":
        """The stages up to `count` >= 1 as they stood when the last of them had begun and written nothing."""
        cut = {name: getattr(self, name)[:count].copy() for name in self.__slots__}
        for name in ("output_tokens", "critical_tokens", "tool_ms"):
            cut[name][-1] = 0.0
        cut["ended"][-1] = False
        return Stages(**cut)


def actor_code(names: Sequence[str]) -> int:
    """1..255 for a set of names; 0 when none is known."""
    known = sorted({name for name in names if name})
    return 1 + crc32("\0".join(known).encode(errors="replace")) % 255 if known else 0


def app_code(app: str) -> int:
    """A positive 31-bit number for an application tag; 0 for an empty one."""
    return (crc32(app.encode(errors="replace")) & 0x7FFFFFFF or 1) if app else 0


def stages_of(graph: TaskGraph) -> Stages:
    """Fold the calls into stages. A call that is listed twice counts as it stands last."""
    calls: dict[object, Call] = {}
    for number, call in enumerate(graph.calls):
        calls[call.request_id or number] = call
    listed = list(calls.values())
    numbers = _stage_numbers(listed)
    order = {number: at for at, number in enumerate(sorted(set(numbers)))}
    columns = np.zeros((6, len(order)))
    ended = np.ones(len(order), dtype=np.bool_)
    names: list[set[str]] = [set() for _ in order]
    model_calls, tool_calls, inputs, outputs, critical, tool_ms = columns
    for call, number in zip(listed, numbers, strict=True):
        at = order[number]
        names[at].add(call.actor)
        ended[at] &= call.ended
        if call.tool:
            tool_calls[at] += 1
            tool_ms[at] = max(tool_ms[at], call.duration_ms)
        else:
            model_calls[at] += 1
            inputs[at] = max(inputs[at], call.input_tokens)
            outputs[at] += call.output_tokens
            critical[at] = max(critical[at], call.output_tokens)
    actors = np.array([actor_code(tuple(group)) for group in names], dtype=np.uint8)
    if len(ended):
        # A later stage has begun, so nobody waits for the stages before it.
        ended[:-1] = True
    return Stages(model_calls, tool_calls, inputs, outputs, critical, tool_ms, actors, ended)


def _stage_numbers(calls: Sequence[Call]) -> list[int]:
    """Stage of each call, gaps included."""
    stage_by_id: dict[str, int] = {}
    numbers = []
    for call in calls:
        number = max(call.stage, 0)
        for parent in call.parents:
            before = stage_by_id.get(parent)
            if before is not None and parent != call.request_id:
                number = max(number, before + 1)
        numbers.append(number)
        if call.request_id:
            stage_by_id[call.request_id] = number
    return numbers
