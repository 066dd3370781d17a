"""A forecast as its readers take it, and the deadlines that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What is expected of a stage, if it comes."""

    probability: float
    calls: float
    prompt_tokens: float
    critical_tokens: float
    tool_ms: float


@dataclass(frozen=True, slots=True)
class TaskForecast:
    """What a task still needs. The current stage is the running one, or the next when none runs."""

    remaining_stages: float
    remaining_calls: float
    last_stage_probability: float
    """That no stage follows those seen."""
    quantiles: tuple[float, ...]
    """Levels of the two columns below."""
    remaining_tokens: tuple[float, ...]
    critical_tokens: tuple[float, ...]
    stage_shares: tuple[float, ...]
    """Of the critical-path work to come, the current stage first, the last entry for all later ones; sums to 1."""
    coming: tuple[StageForecast, ...]
    source: str
    """pattern: tasks alike; app: tasks of the application; prior: the shipped patterns and what is usual."""
    pattern: str
    """Name of the nearest pattern; empty: none."""
    similarity: float
    coverage_p90: float
    """Realised, of critical_tokens, for the application; 0: not known yet."""
    model_version: str


def sub_deadline_ms(now_ms: float, task_deadline_ms: float, shares: Sequence[float], stage: int = 0) -> float:
    """When the stage `stage` (0: the current one) has to end: `now + budget left * share of the work up to it`.

    Planned again at each event, so that what one stage saves or loses is dealt out to all that come. A budget that is
    spent leaves the deadline of the task.
    """
    if not shares:
        return task_deadline_ms
    left_ms = max(task_deadline_ms - now_ms, 0.0)
    if left_ms == 0.0:
        return task_deadline_ms
    return now_ms + left_ms * min(sum(shares[: stage + 1]), 1.0)
