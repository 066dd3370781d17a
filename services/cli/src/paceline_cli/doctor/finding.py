"""What a check has to say."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # it works, and could be better
    PROBLEM = "problem"  # the stack will not start or not answer


@dataclass(frozen=True, slots=True)
class Finding:
    """One result: what was looked at, what was found, and, unless it is well, what to do."""

    check: str
    level: Level
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """It works, and could be better."""
    return Finding(check, Level.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """The stack will not start or not answer."""
    return Finding(check, Level.PROBLEM, found, advice)
