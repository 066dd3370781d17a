"""Reads compressed CSV and JSON lines."""

import csv
import gzip
import json
import lzma
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, plain or compressed. Raises OSError when it is not there."""
    with _open(path) as file:
        yield from csv.DictReader(file)


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON lines file, plain or compressed. Raises OSError, ValueError."""
    with _open(path) as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def grouped(path: Path, *columns: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """Rows of a CSV file by the values of some columns, in their order."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in csv_rows(path):
        groups[tuple(row[column] for column in columns)].append(row)
    return groups


def number(text: str | None) -> float:
    """A number of a CSV cell; an empty one is 0."""
    return float(text) if text else 0.0


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
