"""The part of TensorRT-LLM that is touched, as data: `surface.yaml` read into values."""

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Entry:
    """One name that is used. Exactly one of method, property_name, constant, fields, attributes says what it is."""

    name: str
    files: tuple[str, ...]
    """Where it may be defined, relative to the root of the sources."""
    owners: tuple[str, ...]
    """Classes that may define it."""
    provenance: str
    method: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    """(name, default as written, "required" for none)."""
    constants: tuple[tuple[str, str], ...] = ()
    """Names that defaults may be written as, with their values."""
    property_name: str = ""
    constant: str = ""
    fields: tuple[str, ...] = ()
    """Fields of a class, its bases included; split over several owners if there are."""
    attributes: tuple[str, ...] = ()
    """Attributes that a class sets on itself."""
    optional: frozenset[str] = frozenset()
    """What may be missing: it is detected, and done without."""
    private: bool = False


@dataclass(frozen=True)
class StatsFields:
    """Keys of a row of iteration statistics."""

    required: tuple[str, ...]
    kv: tuple[str, ...]
    inflight: tuple[str, ...]


@dataclass(frozen=True)
class Surface:
    """The whole surface."""

    target: str
    entries: tuple[Entry, ...]
    stats: StatsFields

    def entry(self, name: str) -> Entry:
        """An entry by name; raises KeyError."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)


@functools.cache
def surface() -> Surface:
    """The surface that this version of Paceline was written against."""
    text = (resources.files(__package__) / "surface.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    stats = document["stats_fields"]
    return Surface(
        document["target"],
        tuple(_entry(row) for row in document["entries"]),
        StatsFields(tuple(stats["required"]), tuple(stats["kv"]), tuple(stats["inflight"])),
    )


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        name=row["name"],
        files=tuple(row["files"]),
        owners=tuple(row.get("owners", ())),
        provenance=row["provenance"],
        method=row.get("method", ""),
        parameters=_pairs(row.get("parameters")),
        constants=_pairs(row.get("constants")),
        property_name=row.get("property", ""),
        constant=row.get("constant", ""),
        fields=tuple(row.get("fields", ())),
        attributes=tuple(row.get("attributes", ())),
        optional=frozenset(row.get("optional", ())),
        private=bool(row.get("private", False)),
    )


def _pairs(mapping: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in (mapping or {}).items())
