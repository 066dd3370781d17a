"""A workload as plain values: jobs in order of arrival, each one call or a task of several.

Everything here is the truth that only the simulator and the oracle read: a policy sees what a live service would.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from paceline_core.slo import Slo, SloClass


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a language model."""

    stage: int
    """Stage of the task, from 0; 0 for a job of one call."""
    parents: tuple[int, ...]
    """Places in the job's calls that end before this one starts; each lower than this call's own place."""
    prompt_tokens: int
    output_tokens: int
    tool_ms: float
    """Time between the end of the last parent (a root: the job's arrival) and the start of this call."""
    shared_prefix_tokens: int = 0
    """Leading prompt tokens that an earlier call of the same job, or another job of its group, also begins with."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a client asks for: one request of the latency, deadline or best-effort class, or one task."""

    job_id: int
    app: str
    tenant: str
    slo: Slo
    """Times since the job's arrival; a task's names its `task_id`."""
    arrival_ms: float
    calls: tuple[Call, ...]
    priority: int = 0

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem is not None:
            raise ValueError(f"job {self.job_id} of {self.app}: {problem}")

    def _problem(self) -> str | None:
        if not self.calls:
            return "no calls"
        if self.slo.slo_class is not SloClass.TASK and len(self.calls) != 1:
            return f"{len(self.calls)} calls, but not a task"
        for place, call in enumerate(self.calls):
            if call.prompt_tokens < 1 or call.output_tokens < 1:
                return f"call {place} has {call.prompt_tokens} prompt and {call.output_tokens} output tokens"
            if call.tool_ms < 0 or not 0 <= call.shared_prefix_tokens <= call.prompt_tokens:
                return f"call {place} has a tool time or a shared prefix out of range"
            if any(not 0 <= parent < place for parent in call.parents):
                return f"call {place} has the parents {call.parents}"
        return self.slo.problem()

    @property
    def stages(self) -> int:
        """Number of stages, from the highest one."""
        return 1 + max(call.stage for call in self.calls)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all calls."""
        return sum(call.prompt_tokens for call in self.calls)

    @property
    def output_tokens(self) -> int:
        """Output tokens of all calls."""
        return sum(call.output_tokens for call in self.calls)


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs sorted by arrival, all of which arrive in [0, duration_ms)."""

    name: str
    seed: int
    jobs: tuple[Job, ...]
    duration_ms: float
    rate_per_s: float
    """Jobs per second that were asked for."""

    @classmethod
    def of(
        cls, name: str, seed: int, jobs: Iterable[Job], duration_ms: float, rate_per_s: float
    ) -> "Workload":
        """The jobs put in order of arrival."""
        ordered = tuple(sorted(jobs, key=lambda job: (job.arrival_ms, job.job_id)))
        return cls(name, seed, ordered, duration_ms, rate_per_s)

    @property
    def calls(self) -> int:
        """Calls of all jobs."""
        return sum(len(job.calls) for job in self.jobs)
