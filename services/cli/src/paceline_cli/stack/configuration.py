"""The effective configuration of the local stack: built-in defaults, a file, then what the command line says."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from paceline_cli.stack.settings import UpConfig, UpDocument
from paceline_runtime.config import SECTIONS, load_config, parse_value
from paceline_runtime.config_model import ConfigError

Tree = dict[str, Any]

CONFIG_FILE = "paceline.yaml"
"""The effective configuration, in the state folder of a stack."""


def read_file(path: Path | None) -> Tree:
    """The sections of a configuration file; empty without one. Raises ConfigError."""
    if path is None:
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict) or not all(isinstance(value, dict | None) for value in tree.values()):
        raise ConfigError([f"{path}: the top level must be sections with names, e.g. `router:`"])
    unknown = sorted(tree.keys() - SECTIONS)
    if unknown:
        raise ConfigError(
            [f"{name}: unknown section [{path}]; known: {', '.join(sorted(SECTIONS))}" for name in unknown]
        )
    return {name: dict(section or {}) for name, section in tree.items()}


def effective(path: Path | None, defaults: Mapping[str, Mapping[str, Any]], overrides: Iterable[str]) -> Tree:
    """Sections merged: `defaults`, the file, then `overrides` written `section.key=value`."""
    tree: Tree = {name: dict(section) for name, section in defaults.items()}
    for name, section in read_file(path).items():
        _merge(tree.setdefault(name, {}), section)
    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        keys = key.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys) or keys[0] not in SECTIONS:
            problems.append(f"{override}: write it as section.key=value, e.g. up.engines=1")
            continue
        place = tree
        for part in keys[:-1]:
            place = place.setdefault(part, {})
        place[keys[-1]] = parse_value(value)
    if problems:
        raise ConfigError(problems)
    return tree


def write(tree: Tree, path: Path) -> None:
    """Write the effective configuration where the services will read it."""
    path.write_text(
        "# Written by `paceline up` at each start: what the services of this stack read.\n"
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )


def up_config(path: Path) -> UpConfig:
    """The `up` section of the effective configuration, checked."""
    return load_config(UpDocument, path).up


def _merge(into: Tree, new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
