"""What a client declares about time, by header or in the body's `metadata`, as a `paceline.common.v1.Slo`.

Names are the same in both places and case does not matter. A value that cannot be read, that does not fit the class, or
that is said twice with different meanings is refused with the name of the header: a promise misread helps nobody.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline.common.v1 import slo_pb2
from paceline_core.slo import MAX_BUDGET_MS
from paceline_runtime.errors import PacelineError, Reason, invalid

CLASS = "x-slo-class"
TTFT = "x-slo-ttft-ms"
TBT = "x-slo-tbt-ms"
E2E = "x-slo-e2e-ms"
ON_MISS = "x-slo-on-miss"
PROGRAM_ID = "x-slo-program-id"
PROGRAM_DEADLINE = "x-slo-program-deadline-ms"
PROGRAM_FINAL = "x-slo-program-final"
PROGRAM_STAGE = "x-slo-program-stage"
PROGRAM_PARENTS = "x-slo-program-parents"

_ALIASES = {"x-slo-tpot-ms": TBT}
_NAMES = frozenset(
    {
        CLASS,
        TTFT,
        TBT,
        E2E,
        ON_MISS,
        PROGRAM_ID,
        PROGRAM_DEADLINE,
        PROGRAM_FINAL,
        PROGRAM_STAGE,
        PROGRAM_PARENTS,
    }
)
_PREFIX = "x-slo-"

# What may stand beside each class.
_BELONGS = {
    "latency": {TTFT, TBT},
    "deadline": {E2E},
    "task": {PROGRAM_ID, PROGRAM_DEADLINE, PROGRAM_FINAL, PROGRAM_STAGE, PROGRAM_PARENTS},
    "best-effort": set[str](),
}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
_TASK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ON_MISS = {"finish": slo_pb2.ON_MISS_FINISH, "drop": slo_pb2.ON_MISS_DROP}
_FINAL = {"true": True, "1": True, "false": False, "0": False}
_MAX_PARENTS = 64


@dataclass(frozen=True, slots=True)
class _Said:
    """One value and the name under which the client sent it, for messages."""

    value: str
    name: str


def declared_slo(
    headers: Iterable[tuple[str, str]], metadata: Mapping[str, Any] | None
) -> slo_pb2.Slo | None:
    """The objective a client declared; None when it declared nothing.

    `headers` are all headers of the request. Raises PacelineError INVALID_SLO naming the header.
    """
    said: dict[str, _Said] = {}
    for name, value in headers:
        _note(said, name, value)
    for name, value in (metadata or {}).items():
        _note(said, name, _text(name, value))
    if not said:
        return None
    slo = slo_pb2.Slo()
    if (on_miss := said.get(ON_MISS)) is not None:
        if on_miss.value not in _ON_MISS:
            raise _bad(on_miss.name, f"must be finish or drop, got {on_miss.value!r}")
        slo.on_miss = _ON_MISS[on_miss.value]
    slo_class = _class(said)
    if slo_class is not None:
        _fill(slo, slo_class, said)
    return slo


def _note(said: dict[str, _Said], name: str, value: str) -> None:
    lower = name.lower()
    if not lower.startswith(_PREFIX):
        return
    key = _ALIASES.get(lower, lower)
    if key not in _NAMES:
        raise _bad(lower, f"is not known; known are {', '.join(sorted(_NAMES | _ALIASES.keys()))}")
    value = value.strip()
    if key in (CLASS, ON_MISS, PROGRAM_FINAL):
        value = value.lower().replace("_", "-")
    before = said.get(key)
    if before is not None and before.value != value:
        raise _bad(lower, f"says {value!r}, but {before.name} says {before.value!r}")
    said[key] = _Said(value, lower)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if name.lower().startswith(_PREFIX):
        raise _bad(name.lower(), "must be a string")
    return ""


def _class(said: Mapping[str, _Said]) -> str | None:
    """The class that was named, or the one the times belong to."""
    named = said.get(CLASS)
    if named is not None:
        if named.value not in _BELONGS:
            raise _bad(named.name, f"must be one of {', '.join(_BELONGS)}, got {named.value!r}")
        chosen, why = named.value, f"{named.name} is {named.value}"
    else:
        found = next(((c, said[k]) for c, keys in _BELONGS.items() for k in sorted(keys) if k in said), None)
        if found is None:
            return None
        chosen, why = found[0], f"{found[1].name} is given"
    for slo_class, keys in _BELONGS.items():
        for key in sorted(keys):
            if slo_class != chosen and key in said:
                raise _bad(
                    said[key].name, f"belongs to class {slo_class} and cannot be used here, since {why}"
                )
    return chosen


def _fill(slo: slo_pb2.Slo, slo_class: str, said: Mapping[str, _Said]) -> None:
    if slo_class == "latency":
        slo.latency.SetInParent()
        slo.latency.ttft_ms = _budget(said, TTFT, "the latency class")
        slo.latency.tbt_ms = _budget(said, TBT, "the latency class")
    elif slo_class == "deadline":
        slo.deadline.SetInParent()
        slo.deadline.e2e_ms = _budget(said, E2E, "the deadline class")
    elif slo_class == "best-effort":
        slo.best_effort.SetInParent()
    else:
        _fill_task(slo.task, said)


def _fill_task(task: slo_pb2.TaskSlo, said: Mapping[str, _Said]) -> None:
    program = said.get(PROGRAM_ID)
    if program is None:
        raise _bad(
            PROGRAM_ID, "is missing: the task class needs the id of the program that the call belongs to"
        )
    task.task_id = _identifier(program, program.value)
    if PROGRAM_DEADLINE in said:
        # Without it the budget given when the task began, or the default, holds.
        task.e2e_ms = _budget(said, PROGRAM_DEADLINE, "the task class")
    if (final := said.get(PROGRAM_FINAL)) is not None:
        if final.value not in _FINAL:
            raise _bad(final.name, f"must be true or false, got {final.value!r}")
        task.final = _FINAL[final.value]
    if (stage := said.get(PROGRAM_STAGE)) is not None:
        if len(stage.value) > 64:
            raise _bad(stage.name, "must be at most 64 characters")
        task.stage = stage.value
    if (parents := said.get(PROGRAM_PARENTS)) is not None:
        ids = [part.strip() for part in parents.value.split(",") if part.strip()]
        if len(ids) > _MAX_PARENTS:
            raise _bad(parents.name, f"must name at most {_MAX_PARENTS} requests")
        task.parent_request_ids.extend(_identifier(parents, one) for one in ids)


def _identifier(said: _Said, text: str) -> str:
    if not _TASK_ID.fullmatch(text):
        raise _bad(said.name, f"must be 1 to 128 characters of A-Z a-z 0-9 _ . : -, got {text[:160]!r}")
    return text


def _budget(values: Mapping[str, _Said], key: str, who: str) -> float:
    said = values.get(key)
    if said is None:
        raise _bad(key, f"is missing: {who} needs it")
    if not _NUMBER.fullmatch(said.value):
        raise _bad(said.name, f"must be a number of milliseconds greater than 0, got {said.value[:80]!r}")
    value = float(said.value)
    if not 0 < value <= MAX_BUDGET_MS:
        raise _bad(
            said.name, f"must be greater than 0 and at most {MAX_BUDGET_MS:.0f} ms, got {said.value[:80]}"
        )
    return value


def _bad(name: str, problem: str) -> PacelineError:
    return invalid(f"{name} {problem}", field=name, reason=Reason.INVALID_SLO)


def reply_headers(slo: slo_pb2.Slo) -> dict[str, str]:
    """The objective a request is held to, as reply headers."""
    which = slo.WhichOneof("target")
    if which is None:
        return {}
    headers = {CLASS: which.replace("_", "-")}
    if which == "latency":
        headers[TTFT], headers[TBT] = f"{slo.latency.ttft_ms:.10g}", f"{slo.latency.tbt_ms:.10g}"
    elif which == "deadline":
        headers[E2E] = f"{slo.deadline.e2e_ms:.10g}"
    elif which == "task":
        headers[PROGRAM_ID] = slo.task.task_id
        if slo.task.e2e_ms > 0:
            headers[PROGRAM_DEADLINE] = f"{slo.task.e2e_ms:.10g}"
    return headers
