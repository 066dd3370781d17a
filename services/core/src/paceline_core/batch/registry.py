"""The table of batch policies: a name, and how to make one from parameters."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from paceline_core.batch.edf import Edf, EdfShed
from paceline_core.batch.fcfs import Fcfs
from paceline_core.batch.gmax import Gmax, GmaxNoAnalyzer, GmaxNoGrouping, GmaxNoRefine
from paceline_core.batch.gmax_artifact import GmaxArtifact
from paceline_core.batch.las import Las
from paceline_core.batch.llf_shed import LlfShed
from paceline_core.batch.pace.policy import Oracle, Pace
from paceline_core.batch.policy import BatchPolicy
from paceline_core.batch.sarathi import Sarathi
from paceline_core.batch.sjf import Sjf, SjfMean
from paceline_core.batch.slos_serve import SlosServe

_CLASSES: Final[tuple[type[Any], ...]] = (
    Fcfs,
    Sarathi,
    Las,
    Sjf,
    SjfMean,
    Edf,
    EdfShed,
    LlfShed,
    SlosServe,
    Gmax,
    GmaxArtifact,
    GmaxNoAnalyzer,
    GmaxNoGrouping,
    GmaxNoRefine,
    Pace,
    Oracle,
)

POLICIES: Final[Mapping[str, type[Any]]] = {cls.name: cls for cls in _CLASSES}
"""Every entry is a dataclass with a class variable `name`, whose fields are the parameters of the policy, typed and
with defaults."""

ParamValue = float | int | str | bool


def make_policy(name: str, params: Mapping[str, ParamValue] | None = None) -> BatchPolicy:
    """The policy called `name`. Raises ValueError on an unknown name, an unknown parameter or a wrong type."""
    cls = POLICIES.get(name)
    if cls is None:
        raise ValueError(f"unknown batch policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    known = {field.name: field.type for field in fields(cls)}
    values: dict[str, ParamValue] = {}
    for key, value in (params or {}).items():
        if key not in known:
            raise ValueError(
                f"policy {name!r} has no parameter {key!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        values[key] = _checked(name, key, value, known[key])
    policy: BatchPolicy = cls(**values)
    return policy


def _checked(policy: str, key: str, value: ParamValue, wanted: object) -> ParamValue:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(wanted, type) or type(value) is not wanted:
        type_name = getattr(wanted, "__name__", wanted)
        raise ValueError(f"parameter {key!r} of policy {policy!r} is of type {type_name}, got {value!r}")
    return value
