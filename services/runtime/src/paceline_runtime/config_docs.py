"""Documents a configuration from its model: every key with its meaning, unit and default."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """One key. `path` is dotted, with `[]` for the items of a list; `default` is None when the key must be given."""

    path: str
    type: str
    default: str | None
    description: str


def config_keys(model: type[BaseModel], prefix: str = "") -> Iterator[ConfigKey]:
    """All keys of a model, sections first opened, then their keys."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        section, many = _section(field.annotation)
        if section is None or many:
            yield ConfigKey(path, _type_name(field.annotation), _default(field), _one_line(field.description))
        if section is not None:
            yield from config_keys(section, path + ("[]." if many else "."))


def undocumented_keys(model: type[BaseModel]) -> list[str]:
    """Paths of keys without a description; a test asks that there are none."""
    return [key.path for key in config_keys(model) if not key.description]


def render_config(model: type[BaseModel]) -> str:
    """The keys as text for `--help`: one line each, and its description below it."""
    lines = []
    for key in config_keys(model):
        default = "required" if key.default is None else f"default {key.default}"
        lines.append(f"  {key.path}  ({key.type}; {default})\n      {key.description}")
    return "\n".join(lines)


def render_markdown(model: type[BaseModel]) -> str:
    """The keys as a Markdown table for the documentation."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key in config_keys(model):
        cells = (
            f"`{key.path}`",
            key.type,
            "required" if key.default is None else f"`{key.default}`",
            key.description,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model below a field, and whether the field holds many of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin = get_origin(annotation)
    for inner in get_args(annotation):
        section, many = _section(inner)
        if section is not None:
            return section, many or origin not in (Union, types.UnionType)
    return None, False


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(
            "not set" if arg is type(None) else _type_name(arg) for arg in get_args(annotation)
        )
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type_name(get_args(annotation)[0])}"
    if origin is dict:
        key, value = get_args(annotation)
        return f"map of {_type_name(key)} to {_type_name(value)}"
    if origin is not None and get_args(annotation):
        return " or ".join(str(arg) for arg in get_args(annotation))
    if annotation is SecretStr:
        return "text, secret"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "file path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    if field.default_factory is not None and field.default_factory_takes_validated_data:
        return "computed"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | dict | set | frozenset) and not value:
        return "none"
    return str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
