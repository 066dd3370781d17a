"""How long the steps of a simulated engine take: the engine model of the line with numbers from a file."""

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml


class UnknownProfileError(ValueError):
    """No profile of that name, or its file lacks a number."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Coefficients of the step time in milliseconds, and the size of the KV memory.

    decode = a + b*B + c*sum(context), with a1 + c*context for B = 1 where a1 is given;
    prefill of n tokens after `context` = p0 + d*n + e*n*(context + n/2).
    """

    name: str
    device: str
    a_ms: float
    b_ms: float
    c_ms: float
    a1_ms: float
    p0_ms: float
    d_ms: float
    e_ms: float
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    run_set_change_cost_ms: float

    def decode_ms(self, batch: int, context_tokens: int) -> float:
        """Time of one decode call of `batch` >= 1 sequences with `context_tokens` in sum."""
        if batch == 1 and self.a1_ms > 0:
            return self.a1_ms + self.c_ms * context_tokens
        return self.a_ms + self.b_ms * batch + self.c_ms * context_tokens

    def prefill_ms(self, tokens: int, context_tokens: int) -> float:
        """Time of one prefill call of `tokens` >= 1 tokens after `context_tokens`."""
        return self.p0_ms + self.d_ms * tokens + self.e_ms * tokens * (context_tokens + tokens / 2)

    def scaled(self, factor: float) -> "Profile":
        """The same engine with every time multiplied by `factor`."""
        if factor == 1.0:
            return self
        times = ("a_ms", "b_ms", "c_ms", "a1_ms", "p0_ms", "d_ms", "e_ms", "run_set_change_cost_ms")
        return replace(self, **{name: getattr(self, name) * factor for name in times})


def profile_names() -> list[str]:
    """Profiles that ship with the package."""
    folder = resources.files(__package__) / "profiles"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or one from a YAML file by path. Raises UnknownProfileError."""
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise UnknownProfileError(f"cannot read the profile {name}: {error}") from error
    elif name in profile_names():
        text = (resources.files(__package__) / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UnknownProfileError(f"no profile {name!r}: choose {', '.join(profile_names())} or a .yaml file")
    return _parse(Path(name).stem, text)


def _parse(name: str, text: str) -> Profile:
    numbers = yaml.safe_load(text)
    if not isinstance(numbers, dict):
        raise UnknownProfileError(f"profile {name} is not a mapping")
    kinds = {field: kind for field, kind in Profile.__annotations__.items() if field != "name"}
    if set(numbers) != set(kinds):
        raise UnknownProfileError(
            f"profile {name} differs from the known fields in {sorted(set(numbers) ^ set(kinds))}"
        )
    return Profile(name=name, **{field: kind(numbers[field]) for field, kind in kinds.items()})
