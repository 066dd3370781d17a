"""The base of every config section: frozen, documented, and strict about keys."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class ConfigModel(BaseModel):
    """A section of the configuration. A string below a field documents it: the meaning and the unit."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        validate_default=True,
    )


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has one line for each fault, beginning with the key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("configuration: " + "; ".join(problems))
        self.problems = tuple(problems)
