"""Objectives of a workload's parts."""

from dataclasses import dataclass

from paceline_core.slo import Slo, SloClass


@dataclass(frozen=True, slots=True)
class Targets:
    """Times of each class in milliseconds."""

    ttft_ms: float
    tbt_ms: float
    e2e_ms: float
    stage_ms: float
    """A task has this for each of its stages."""

    def scaled(self, factor: float) -> "Targets":
        """Every time multiplied by `factor`."""
        return Targets(
            self.ttft_ms * factor, self.tbt_ms * factor, self.e2e_ms * factor, self.stage_ms * factor
        )

    def latency(self) -> Slo:
        """Time to the first token, then between tokens."""
        return Slo(SloClass.LATENCY, ttft_ms=self.ttft_ms, tbt_ms=self.tbt_ms)

    def deadline(self) -> Slo:
        """The whole answer."""
        return Slo(SloClass.DEADLINE, e2e_ms=self.e2e_ms)

    def task(self, task_id: str, stages: int, tools_ms: float = 0.0) -> Slo:
        """The whole task: so much a stage, and the time its tools are expected to take."""
        return Slo(SloClass.TASK, e2e_ms=self.stage_ms * stages + tools_ms, task_id=task_id)


PAPER = Targets(ttft_ms=2000.0, tbt_ms=100.0, e2e_ms=20_000.0, stage_ms=20_000.0)
"""What the JITServe paper states."""
ARTIFACT = Targets(ttft_ms=800.0, tbt_ms=80.0, e2e_ms=8000.0, stage_ms=8000.0)
"""The base of its released harness, which multiplies it by 1 to 4."""
BEST_EFFORT = Slo(SloClass.BEST_EFFORT)
