"""What a build of TensorRT-LLM offers, by its signatures and never by its version."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """True where the build knows a name. Absent ones are done without."""

    priority: bool
    cache_salt: bool
    retention: bool
    lora: bool
    stats: bool
    health: bool
    prompt_ignore_length: bool

    def missing(self) -> list[str]:
        """Names of what the build lacks."""
        return [field.name for field in fields(self) if not getattr(self, field.name)]


def detect(llm: Any, sampling_params: Callable[..., Any]) -> Features:
    """Look at an LLM object and its SamplingParams class."""
    submit = _parameters(llm.generate_async)
    found = Features(
        priority="priority" in submit,
        cache_salt="cache_salt" in submit,
        retention="kv_cache_retention_config" in submit,
        lora="lora_request" in submit,
        stats=callable(getattr(llm, "get_stats_async", None)),
        health=callable(getattr(llm, "_check_health", None)),
        prompt_ignore_length="prompt_ignore_length" in _parameters(sampling_params),
    )
    if lacking := found.missing():
        _log.warning("this build of TensorRT-LLM lacks %s", ", ".join(lacking))
    return found


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
