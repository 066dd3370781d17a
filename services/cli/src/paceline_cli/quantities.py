"""Ages and sizes as people write them on a command line."""

import re

from paceline_cli.errors_base import CommandError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def seconds_of(text: str, option: str) -> float:
    """`90s`, `30m`, `12h`, `7d`, `2w`. Raises CommandError that names the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise CommandError(f"{option} is a time such as 90s, 30m, 12h, 7d or 2w, got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def bytes_of(text: str, option: str) -> int:
    """`500MB`, `2GiB`, `1000`. Raises CommandError that names the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _BYTES:
        raise CommandError(f"{option} is a size such as 500MB or 2GiB, got {text!r}")
    return int(float(match[1]) * _BYTES[match[2].upper()])


def megabytes(size_bytes: int) -> str:
    """A size to be read."""
    return f"{size_bytes / 1e6:.1f} MB"
