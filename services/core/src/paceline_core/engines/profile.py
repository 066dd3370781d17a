"""A profile of an engine: the linear step times a scheduler starts from, and the roofline a simulator lives in."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from paceline_core.engine_model import EngineModel


class UnknownProfileError(ValueError):
    """No profile of that name, or its numbers are not those of a profile."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """A dense decoder on one accelerator, every step of which runs prefill and decode in one pass."""

    parameters: float
    """Weights read and multiplied for each token, P."""
    weight_bytes: float
    """Bytes of one parameter: 2 for bf16."""
    layers: float
    width: float
    """Width of the attention: heads times their dimension."""
    flops_per_s: float
    """Rate reached in matrix products, F; below the number in a data sheet."""
    bytes_per_s: float
    """Rate reached in reading memory, W."""
    overhead_ms: float
    """What every step costs besides, o."""

    def attention_flops(self) -> float:
        """Operations of one token's attention to one other token, in all layers: two products of `width`."""
        return 4.0 * self.layers * self.width


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
    source: str = ""
    """Where the numbers come from."""
    roofline: Roofline | None = None
    """None: the linear model is all that is known (then it is also the truth of a simulation)."""

    @property
    def model(self) -> EngineModel:
        """The linear step times, as a scheduler keeps them."""
        return EngineModel(*(getattr(self, field) for field in _LINEAR))

    def decode_ms(self, batch: int, context_tokens: int) -> float:
        """Time of one decode call of `batch` >= 1 sequences with `context_tokens` in sum, by the linear model."""
        if batch == 1 and self.a1_ms > 0:
            return self.a1_ms + self.c_ms * context_tokens
        return self.a_ms + self.b_ms * batch + self.c_ms * context_tokens

    def prefill_ms(self, tokens: int, context_tokens: int) -> float:
        """Time of one prefill call of `tokens` >= 1 tokens after `context_tokens`, by the linear model."""
        return self.p0_ms + self.d_ms * tokens + self.e_ms * tokens * (context_tokens + tokens / 2)

    def scaled(self, factor: float) -> "Profile":
        """The same engine with every time multiplied by `factor`."""
        if factor == 1.0:
            return self
        roofline = self.roofline
        if roofline is not None:
            roofline = replace(
                roofline,
                flops_per_s=roofline.flops_per_s / factor,
                bytes_per_s=roofline.bytes_per_s / factor,
                overhead_ms=roofline.overhead_ms * factor,
            )
        times: dict[str, Any] = {
            field: getattr(self, field) * factor for field in (*_LINEAR, "run_set_change_cost_ms")
        }
        return replace(self, roofline=roofline, **times)

    def perturbed(self, flops_factor: float = 1.0, bytes_factor: float = 1.0) -> "Profile":
        """The same engine with other rates, the linear times following; for checks of what hangs on them.

        Raises UnknownProfileError for a profile without a roofline.
        """
        if self.roofline is None:
            raise UnknownProfileError(f"profile {self.name} has no roofline whose rates could be changed")
        roofline = replace(
            self.roofline,
            flops_per_s=self.roofline.flops_per_s * flops_factor,
            bytes_per_s=self.roofline.bytes_per_s * bytes_factor,
        )
        times: dict[str, Any] = dict(linear_of(roofline, self.kv_bytes_per_token))
        return replace(self, roofline=roofline, **times)


_LINEAR = ("a_ms", "b_ms", "c_ms", "a1_ms", "p0_ms", "d_ms", "e_ms")
_OPTIONAL = ("source", "roofline")


def linear_of(roofline: Roofline, kv_bytes_per_token: float) -> dict[str, float]:
    """Linear coefficients of a roofline, for batches that memory bounds: weights and KV read once, no term in B.

    A prefill is priced as a call of its own, which over-prices what rides along with a decode step: a running
    engine's own reports correct that.
    """
    f_ms, w_ms = roofline.flops_per_s / 1e3, roofline.bytes_per_s / 1e3
    attention_ms = roofline.attention_flops() / f_ms
    return {
        "a_ms": roofline.overhead_ms + roofline.parameters * roofline.weight_bytes / w_ms,
        "b_ms": 0.0,
        "c_ms": kv_bytes_per_token / w_ms + attention_ms,
        "a1_ms": 0.0,
        "p0_ms": roofline.overhead_ms,
        "d_ms": 2.0 * roofline.parameters / f_ms,
        "e_ms": attention_ms,
    }


def parse_profile(name: str, numbers: object) -> Profile:
    """A profile from the mapping of its file. Raises UnknownProfileError on missing, unknown or bad fields."""
    values = _checked(f"profile {name}", numbers, Profile, omit=("name",), optional=_OPTIONAL)
    roofline = None
    if "roofline" in values:
        parts = _checked(f"roofline of profile {name}", values["roofline"], Roofline)
        roofline = Roofline(**{field: _number(f"{name}: {field}", value) for field, value in parts.items()})
    scalars = {field: _number(f"{name}: {field}", values[field]) for field in _LINEAR}
    return Profile(
        name=name,
        device=str(values["device"]),
        kv_capacity_tokens=int(_number(f"{name}: kv_capacity_tokens", values["kv_capacity_tokens"])),
        kv_bytes_per_token=int(_number(f"{name}: kv_bytes_per_token", values["kv_bytes_per_token"])),
        run_set_change_cost_ms=_number(f"{name}: run_set_change_cost_ms", values["run_set_change_cost_ms"]),
        source=str(values.get("source", "")).strip(),
        roofline=roofline,
        **scalars,
    )


def _checked(
    what: str,
    numbers: object,
    kind: type,
    omit: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> Mapping[str, object]:
    if not isinstance(numbers, dict):
        raise UnknownProfileError(f"{what} is not a mapping")
    known = {field.name for field in fields(kind)} - set(omit)
    wrong = (set(numbers) - known) | (known - set(optional) - set(numbers))
    if wrong:
        raise UnknownProfileError(f"{what} differs from the known fields in {sorted(map(str, wrong))}")
    return numbers


def _number(what: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UnknownProfileError(f"{what} is not a number: {value!r}") from error
    if not number >= 0 or number == float("inf"):
        raise UnknownProfileError(f"{what} must be finite and at least 0, got {value!r}")
    return number
