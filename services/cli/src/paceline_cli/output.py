"""How commands print: tables for people, JSON for machines."""

import datetime
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

# Where nobody looks at a terminal, a table must not be cut to the width of one.
_PIPE_WIDTH = 160


def make_console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for every table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


console = make_console()


def as_text(value: Any) -> str:
    """A JSON document; numbers that JSON lacks are null."""
    return json.dumps(_finite(value), indent=2, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any) -> None:
    """A JSON document on standard output."""
    print(as_text(value))


def as_dict(message: Message) -> dict[str, Any]:
    """A proto message with its own field names."""
    return MessageToDict(message, preserving_proto_field_name=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """A plain table; `right` names the columns of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table, crop=False)


def clock_time(unix_ms: int) -> str:
    """A Unix time in milliseconds as local time of day with date."""
    if not unix_ms:
        return "-"
    moment = datetime.datetime.fromtimestamp(unix_ms / 1000, tz=datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
