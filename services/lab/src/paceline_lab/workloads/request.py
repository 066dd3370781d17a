"""What is asked of a workload's maker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """The parameters of `make_workload`."""

    name: str
    rate_per_s: float
    duration_s: float
    seed: int
    cv: float = 1.0
    slo_scale: float = 1.0
    mix: Mapping[str, float] | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        for field in ("rate_per_s", "duration_s", "cv", "slo_scale"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be greater than 0, got {getattr(self, field)!r}")

    def weights(self, parts: Mapping[str, float]) -> dict[str, float]:
        """The weight of every part: `mix` where given (parts it leaves out weigh 0), else the defaults `parts`."""
        if self.mix is None:
            return dict(parts)
        unknown = sorted(set(self.mix) - set(parts))
        if unknown or any(weight < 0 for weight in self.mix.values()) or not sum(self.mix.values()) > 0:
            raise ValueError(f"mix {dict(self.mix)} of {self.name}: weights >= 0 of {', '.join(parts)}")
        return {part: float(self.mix.get(part, 0.0)) for part in parts}
