"""Reads one YAML file, the environment and `--set a.b=c` into a documented pydantic model.

Later sources win: defaults, file, environment (`PACELINE_ROUTER__SERVER__LISTEN`: two
underscores between levels), `--set`.
One file serves all services: each reads its own section and the shared ones, and skips the sections of the others.
"""

import difflib
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from paceline_runtime.config_model import ConfigError

M = TypeVar("M", bound=BaseModel)

ENV_PREFIX = "PACELINE_"

SECTIONS = frozenset(
    {
        "auth", "log", "telemetry", "tls",
        "cli", "executor", "gateway", "lab", "predictor", "router", "scheduler", "store", "up",
    }
)  # fmt: skip
"""Every top-level section there is; a service ignores those that its model does not have."""


def load_config(
    model: type[M],
    path: Path | str | None = None,
    *,
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> M:
    """Build `model` from the file at `path`, the environment, and `overrides` such as `router.server.listen=:0`.

    Raises ConfigError, which names every key at fault.
    """
    known = frozenset(model.model_fields)
    tree: dict[str, Any] = {}
    sources: dict[tuple[str, ...], str] = {}
    if path is not None:
        _merge(tree, _read_yaml(Path(path)), str(path), sources)
    environment = os.environ if environ is None else environ
    for name, value in sorted(environment.items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            keys = [part.lower() for part in name.removeprefix(ENV_PREFIX).split("__")]
            _merge(tree, _nest(keys, parse_value(value)), name, sources)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError([f"{override}: write it as section.key=value"])
        _merge(tree, _nest(key.strip().split("."), parse_value(value)), "--set", sources)
    for foreign in (tree.keys() & SECTIONS) - known:
        del tree[foreign]
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([_problem(model, fault, sources) for fault in error.errors()]) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError([f"{path}: the top level must be sections with names, e.g. `router:`"])
    return content


def parse_value(text: str) -> Any:
    """A value from the environment or the command line: YAML if it is some, else the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _nest(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _merge(
    tree: dict[str, Any],
    new: Mapping[str, Any],
    source: str,
    sources: dict[tuple[str, ...], str],
    at: tuple[str, ...] = (),
) -> None:
    for key, value in new.items():
        here = (*at, str(key))
        current = tree.get(key)
        if isinstance(value, Mapping) and value:
            if not isinstance(current, dict):
                current = tree[key] = {}
            _merge(current, value, source, sources, here)
        elif not (value is None and isinstance(current, dict)):
            # `router:` with nothing below it is an empty section, not a null.
            tree[key] = {} if value is None and not at else value
            sources[here] = source


def _problem(model: type[BaseModel], fault: Any, sources: Mapping[tuple[str, ...], str]) -> str:
    location: tuple[int | str, ...] = fault["loc"]
    path = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        text = f"{path}: unknown key"
        siblings = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), siblings, n=3)
        if close:
            text += "; did you mean " + " or ".join(repr(name) for name in close) + "?"
        elif siblings:
            text += "; known keys: " + ", ".join(siblings)
    else:
        text = f"{path}: {fault['msg']}"
        if not isinstance(fault["input"], Mapping | list):
            text += f" (got {fault['input']!r})"
    source = sources.get(tuple(str(part) for part in location))
    return f"{text} [{source}]" if source else text


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that are allowed at a place in the model."""
    found: type[BaseModel] | None = model
    annotation: Any = model
    for part in location:
        if found is not None and part in found.model_fields:
            annotation = found.model_fields[str(part)].annotation
        elif get_args(annotation):
            annotation = get_args(annotation)[-1 if get_origin(annotation) is dict else 0]
        found = _model_in(annotation)
    return sorted(found.model_fields) if found is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `M` or `M | None`; None if the annotation holds none, or a container of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)
    return None
