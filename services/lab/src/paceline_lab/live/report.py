"""The result of a run as data: goes to JSON, to the table and to the picture."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paceline_core.slo import SloClass
from paceline_lab.live.objectives import IdleTimes, Objectives
from paceline_lab.live.score import ClassScore, JobRecord, score_class
from paceline_lab.live.workload import WorkloadSpec
from paceline_lab.machine import describe_machine


@dataclass(frozen=True)
class LiveReport:
    """A scored run. `rate_source` says where the rate came from."""

    workload: WorkloadSpec
    warmup_s: float
    grace_s: float
    rate_source: str
    policy_label: str
    transport: str
    engines: tuple[dict[str, Any], ...]
    idle: IdleTimes | None
    objectives: Objectives
    jobs: tuple[JobRecord, ...]
    lag_ms: tuple[float, ...]
    errors: dict[str, int]

    @property
    def window_s(self) -> float:
        """Length of the scored window, seconds."""
        return self.workload.duration_s - self.warmup_s

    @property
    def scored(self) -> tuple[JobRecord, ...]:
        """Jobs that arrived in the scored window."""
        return tuple(job for job in self.jobs if job.arrival_s >= self.warmup_s)

    def scores(self) -> list[ClassScore]:
        """One score per class that had jobs, in order of class."""
        present = {job.slo.slo_class for job in self.scored}
        return [
            score_class(slo_class, self.scored, self.window_s)
            for slo_class in SloClass
            if slo_class in present
        ]

    @property
    def lag_p99_ms(self) -> float:
        """P99 of how late the generator itself was, milliseconds."""
        return float(np.percentile(self.lag_ms, 99)) if self.lag_ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything but token times, as JSON takes it (infinite and undefined numbers are null)."""
        scores = self.scores()
        document = {
            "kind": "paceline live",
            "policy_label": self.policy_label,
            "transport": self.transport,
            "engines": list(self.engines),
            "workload": {
                **asdict(self.workload),
                "mix": {slo_class.name.lower(): weight for slo_class, weight in self.workload.mix},
                "rate_source": self.rate_source,
            },
            "window": {
                "warmup_s": self.warmup_s,
                "scored_s": self.window_s,
                "grace_s": self.grace_s,
                "scored_over_longest_slo": self.window_s * 1000 / self.objectives.longest_ms,
            },
            "idle": asdict(self.idle) if self.idle else None,
            "objectives": asdict(self.objectives),
            "classes": {score.slo_class.name.lower(): _score_dict(score) for score in scores},
            "total": totals(scores),
            "failed_calls": self.errors,
            "generator_lag_p99_ms": self.lag_p99_ms,
            "machine": describe_machine(),
        }
        cleaned: dict[str, Any] = _finite(document)
        return cleaned


def totals(scores: Sequence[ClassScore]) -> dict[str, Any]:
    """Over all classes that promise something."""
    promised = [score for score in scores if score.slo_class is not SloClass.BEST_EFFORT]
    jobs = sum(score.jobs for score in promised)
    return {
        "jobs": jobs,
        "attained": sum(score.attained for score in promised),
        "attainment": sum(score.attained for score in promised) / jobs if jobs else float("nan"),
        "token_goodput_1_1": sum(score.token_goodput_1_1 for score in promised),
        "token_goodput_1_8": sum(score.token_goodput_1_8 for score in promised),
        "request_goodput": sum(score.request_goodput for score in promised),
        "output_tokens": sum(score.output_tokens for score in scores),
        "wasted_tokens": sum(score.wasted_tokens for score in promised),
    }


def _score_dict(score: ClassScore) -> dict[str, Any]:
    return {**asdict(score), "slo_class": score.slo_class.name.lower(), "attainment": score.attainment}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
