"""The effective configuration as YAML that explains itself: every key with its meaning, unit and default."""

import importlib
import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr, create_model

from paceline_cli.stack.settings import UpConfig, UpDocument
from paceline_runtime.config import load_config
from paceline_runtime.config_docs import config_keys
from paceline_runtime.config_model import ConfigModel

_WIDTH = 110

# Section -> where its model is. Imported when asked for: a service brings all its libraries along.
SECTION_MODELS = {
    "gateway": "paceline_gateway.config:GatewayConfig",
    "router": "paceline_router.config:RouterConfig",
    "scheduler": "paceline_scheduler.config:SchedulerConfig",
    "executor": "paceline_executor.config:ExecutorConfig",
    "predictor": "paceline_predictor.config:PredictorConfig",
    "store": "paceline_store.config:StoreConfig",
    "log": "paceline_runtime.logs:LogConfig",
    "telemetry": "paceline_runtime.telemetry.config:TelemetryConfig",
    "auth": "paceline_runtime.auth:AuthConfig",
    "tls": "paceline_runtime.tls:TlsConfig",
}


def section_model(section: str) -> type[BaseModel]:
    """The model of a section."""
    if section == "up":
        return UpConfig
    module, _, name = SECTION_MODELS[section].partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return model


def effective_document(path: Path) -> str:
    """The file at `path` with every section filled up with defaults. Raises ConfigError for what cannot be used."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    parts = [render_section("up", load_config(UpDocument, path).up)]
    parts += [render_section(section, _load(section, tree.get(section) or {})) for section in SECTION_MODELS]
    return "\n".join(parts)


def render_section(section: str, values: BaseModel) -> str:
    """One section as commented YAML."""
    lines = textwrap.wrap(f"{_first_line(type(values))}", _WIDTH, initial_indent="# ", subsequent_indent="# ")
    lines.append(f"{section}:")
    lines += _render(values, "  ")
    return "\n".join(lines) + "\n"


def _load(section: str, given: dict[str, Any]) -> BaseModel:
    model = section_model(section)
    document = create_model("Document", __base__=ConfigModel, **{section: (model, model())})  # type: ignore[call-overload]
    overrides = [
        f"{section}.{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in given.items()
    ]
    value: BaseModel = getattr(load_config(document, None, overrides=overrides), section)
    return value


def _render(values: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    documented = {key.path: key for key in config_keys(type(values))}
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        about = " ".join((field.description or "").split())
        key = documented.get(name)
        note = f"{about} (default: {key.default})" if key is not None and key.default is not None else about
        if note:
            lines += textwrap.wrap(
                note, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if isinstance(value, BaseModel):
            lines.append(f"{indent}{name}:")
            lines += _render(value, indent + "  ") or [f"{indent}  {{}}"]
        else:
            text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=10_000)
            plain = (
                text.strip().removesuffix("...").strip()
            )  # the document end that YAML puts after a bare scalar
            lines.append(f"{indent}{name}: {plain}")
    return lines


def _plain(value: Any) -> Any:
    """A value as YAML writes it; secrets stay hidden."""
    if isinstance(value, SecretStr):
        return "**********"
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0]
