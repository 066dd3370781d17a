"""Which engines a simulation has."""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from paceline_core.batch.view import Capacity
from paceline_core.engines.profile import Profile, UnknownProfileError
from paceline_core.engines.shipped import load_profile

DEFAULT_BATCH = 32
_CHUNK_TOKENS = 128
"""Four of them and a batch make the token budget of a step that Sarathi-Serve took for an 8B model on an A100."""
_CHUNK_TOKENS_LINEAR = 64
_MAX_RESIDENT = 1024
_MAX_CONTEXT_TOKENS = 131_072


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One simulated engine."""

    profile: Profile
    max_batch: int = DEFAULT_BATCH
    max_resident: int = _MAX_RESIDENT
    """Sequences with KV; on a GPU the KV memory is the limit."""
    prefill_chunk_tokens: int = _CHUNK_TOKENS
    max_context_tokens: int = _MAX_CONTEXT_TOKENS
    keeps_kv_when_paused: bool = True
    frame_only: bool = False

    @property
    def capacity(self) -> Capacity:
        """As policies see it."""
        return Capacity(
            max_batch=self.max_batch,
            max_resident=max(self.max_resident, self.max_batch),
            kv_tokens=self.profile.kv_capacity_tokens,
            max_context_tokens=min(self.max_context_tokens, self.profile.kv_capacity_tokens),
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            run_set_change_cost_ms=self.profile.run_set_change_cost_ms,
            keeps_kv_when_paused=self.keeps_kv_when_paused,
            frame_only=self.frame_only,
        )

    def batch(self, limit: int) -> "EngineSpec":
        """The same with another batch limit."""
        return replace(self, max_batch=limit)


_FIELDS = {
    "profile": str,
    "count": int,
    "speed_factor": (int, float),
    "max_batch": int,
    "max_resident": int,
    "prefill_chunk_tokens": int,
    "max_context_tokens": int,
    "keeps_kv_when_paused": bool,
    "frame_only": bool,
}


def parse_engines(text: str) -> tuple[EngineSpec, ...]:
    """Engines from `a100-80-8b`, `a100-80-8b:2,h100-8b`, or a YAML file with a list of `engines`.

    An entry of the file names a `profile` (shipped, or a YAML file), and may give `count`, `speed_factor` (times of the
    profile are multiplied by it) and any field of `EngineSpec`. Raises ValueError.
    """
    if text.endswith((".yaml", ".yml")) and ":" not in text:
        return _from_file(Path(text))
    specs: list[EngineSpec] = []
    for part in text.split(","):
        name, _, count = part.strip().partition(":")
        if count and not count.isdigit():
            raise ValueError(f"{part.strip()!r}: write profile or profile:count")
        specs += [_spec(_profile(name))] * int(count or 1)
    if not specs:
        raise ValueError(f"{text!r} names no engine")
    return tuple(specs)


def _from_file(path: Path) -> tuple[EngineSpec, ...]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the engines in {path}: {error}") from error
    if not isinstance(document, dict) or set(document) != {"engines"} or not document["engines"]:
        raise ValueError(f"{path}: wanted a list called `engines`, and nothing else")
    specs: list[EngineSpec] = []
    for entry in document["engines"]:
        if not isinstance(entry, dict) or "profile" not in entry or set(entry) - set(_FIELDS):
            raise ValueError(f"{path}: an engine has a profile, and of {', '.join(_FIELDS)} what differs")
        for key, value in entry.items():
            if not isinstance(value, _FIELDS[key]):  # type: ignore[arg-type]
                raise ValueError(f"{path}: {key} of an engine may not be {value!r}")
        rest = dict(entry)
        profile = _profile(rest.pop("profile")).scaled(rest.pop("speed_factor", 1.0))
        count = int(rest.pop("count", 1))
        specs += [replace(_spec(profile), **rest)] * count
    return tuple(specs)


def _profile(name: str) -> Profile:
    try:
        return load_profile(name)
    except UnknownProfileError as error:
        raise ValueError(str(error)) from error


def _spec(profile: Profile) -> EngineSpec:
    chunk = _CHUNK_TOKENS if profile.roofline is not None else _CHUNK_TOKENS_LINEAR
    return EngineSpec(profile, prefill_chunk_tokens=chunk)
