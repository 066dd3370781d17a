"""The table of placement policies: a name, and how to make one from parameters."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from paceline_core.placement.aibrix_slo import AibrixSlo
from paceline_core.placement.cache_aware import CacheAware
from paceline_core.placement.goodserve import GoodServe, GoodServeNoMigration
from paceline_core.placement.jitserve_power_of_k import JitservePowerOfK
from paceline_core.placement.least_latency import LeastLatency
from paceline_core.placement.least_load import LeastLoad
from paceline_core.placement.least_predicted import LeastPredicted
from paceline_core.placement.least_request import LeastRequest, WeightedLeastRequest
from paceline_core.placement.llm_d import LlmD
from paceline_core.placement.llumnix import Llumnix
from paceline_core.placement.lowest_tpm import LowestTpm
from paceline_core.placement.margin import Margin
from paceline_core.placement.oracle import OracleGoodServe, OracleLeastPredicted, OracleMargin
from paceline_core.placement.policy import PlacementPolicy
from paceline_core.placement.polyserve import Polyserve
from paceline_core.placement.power_of_two import PowerOfTwo
from paceline_core.placement.preble import Preble
from paceline_core.placement.random_choice import Random
from paceline_core.placement.round_robin import RoundRobin
from paceline_core.placement.weighted_round_robin import WeightedRoundRobin

_CLASSES: Final[tuple[type[Any], ...]] = (
    Random,
    RoundRobin,
    WeightedRoundRobin,
    LeastRequest,
    WeightedLeastRequest,
    PowerOfTwo,
    JitservePowerOfK,
    LowestTpm,
    LeastLatency,
    LeastLoad,
    Preble,
    CacheAware,
    Llumnix,
    AibrixSlo,
    LlmD,
    Polyserve,
    LeastPredicted,
    GoodServe,
    GoodServeNoMigration,
    Margin,
    OracleLeastPredicted,
    OracleGoodServe,
    OracleMargin,
)
POLICIES: Final[Mapping[str, type[Any]]] = {cls.name: cls for cls in _CLASSES}
"""Every entry is a dataclass whose fields are the parameters of the policy, typed and with defaults."""

ParamValue = float | int | str | bool


def make_policy(name: str, params: Mapping[str, ParamValue] | None = None) -> PlacementPolicy:
    """A new policy. Raises ValueError on an unknown name, an unknown parameter, or a value of the wrong type."""
    cls = POLICIES.get(name)
    if cls is None:
        raise ValueError(f"unknown placement policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    known = {field.name: field.type for field in fields(cls) if field.init}
    values: dict[str, ParamValue] = {}
    for key, value in (params or {}).items():
        if key not in known:
            raise ValueError(
                f"placement policy {name!r} has no parameter {key!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        values[key] = _checked(name, key, value, known[key])
    policy: PlacementPolicy = cls(**values)
    return policy


def _checked(policy: str, key: str, value: ParamValue, wanted: object) -> ParamValue:
    if wanted is float and type(value) is int:
        return float(value)
    if not isinstance(wanted, type) or type(value) is not wanted:
        type_name = getattr(wanted, "__name__", wanted)
        raise ValueError(
            f"parameter {key!r} of placement policy {policy!r} is of type {type_name}, got {value!r}"
        )
    return value
