"""What a service would have learned of a workload before the run: from a training split, which is another seed's.

Lengths by application and by class, limits that clients set, and how the work of tasks spreads over their stages.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core import lengths
from paceline_core.lengths import FloatArray
from paceline_core.slo import SloClass
from paceline_lab.workloads.trace import Job, Workload

_PSEUDO_OUTCOMES = 2.0
_LEAST_LIMIT = 512
_MOST_STAGES = 48


@dataclass(frozen=True, slots=True)
class StageOutlook:
    """What is expected from a stage of a task on."""

    share: float
    """Of the critical output tokens from here on, this stage's."""
    rest_tokens: float
    """Critical output tokens after this stage."""
    rest_tool_ms: float
    """Time in tools after this stage."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Bin masses float64[K] of output lengths by application, by class and of all; limits; stages of tasks."""

    by_app: dict[str, FloatArray]
    by_class: dict[SloClass, FloatArray]
    overall: FloatArray
    limits: dict[str, int]
    """Most output tokens that clients of an application ask for: a generous power of two."""
    stages: dict[str, list[StageOutlook]]
    """By application and stage."""

    def app_masses(self, app: str) -> FloatArray:
        """Of an application; of all where it is new."""
        return self.by_app.get(app, self.overall)

    def limit(self, app: str, tokens: int) -> int:
        """`max_tokens` of a call that writes `tokens`: the application's limit, or the power of two that holds it."""
        return max(self.limits.get(app, _LEAST_LIMIT), _power_of_two(tokens))

    def outlook(self, app: str, stage: int) -> StageOutlook:
        """Of a stage of a task; a stage later than any seen is taken for the last."""
        known = self.stages.get(app)
        if not known or stage >= len(known):
            return StageOutlook(1.0, 0.0, 0.0)
        return known[stage]


def learn(training: Workload) -> Knowledge:
    """From the jobs of another seed."""
    app_lengths: dict[str, list[int]] = defaultdict(list)
    class_lengths: dict[SloClass, list[int]] = defaultdict(list)
    tasks: dict[str, list[list[StageOutlook]]] = defaultdict(list)
    for job in training.jobs:
        for call in job.calls:
            app_lengths[job.app].append(call.output_tokens)
            class_lengths[job.slo.slo_class].append(call.output_tokens)
        if job.slo.slo_class is SloClass.TASK:
            tasks[job.app].append(true_outlooks(job))
    every = [tokens for values in app_lengths.values() for tokens in values]
    overall = _masses(every, np.full(lengths.K, 1 / lengths.K))
    return Knowledge(
        by_app={app: _masses(values, overall) for app, values in app_lengths.items()},
        by_class={kind: _masses(values, overall) for kind, values in class_lengths.items()},
        overall=overall,
        limits={app: max(_LEAST_LIMIT, _power_of_two(max(values))) for app, values in app_lengths.items()},
        stages={app: _mean_outlooks(seen) for app, seen in tasks.items()},
    )


def true_outlooks(job: Job) -> list[StageOutlook]:
    """Of each stage of a task, from its truth: what an oracle forecasts."""
    critical = np.zeros(job.stages)
    tool_ms = np.zeros(job.stages)
    for call in job.calls:
        critical[call.stage] = max(critical[call.stage], call.output_tokens)
        tool_ms[call.stage] = max(tool_ms[call.stage], call.tool_ms)
    ahead = np.cumsum(critical[::-1])[::-1]
    tools_ahead = np.cumsum(tool_ms[::-1])[::-1]
    return [
        StageOutlook(
            float(critical[s] / max(ahead[s], 1.0)),
            float(ahead[s] - critical[s]),
            float(tools_ahead[s] - tool_ms[s]),
        )
        for s in range(job.stages)
    ]


def _mean_outlooks(seen: list[list[StageOutlook]]) -> list[StageOutlook]:
    """Means by stage, over the tasks that came so far."""
    means: list[StageOutlook] = []
    for stage in range(min(_MOST_STAGES, max(len(outlooks) for outlooks in seen))):
        there = [outlooks[stage] for outlooks in seen if len(outlooks) > stage]
        means.append(
            StageOutlook(
                float(np.mean([outlook.share for outlook in there])),
                float(np.mean([outlook.rest_tokens for outlook in there])),
                float(np.mean([outlook.rest_tool_ms for outlook in there])),
            )
        )
    return means


def _masses(values: Iterable[int], parent: FloatArray) -> FloatArray:
    counts: NDArray[np.float64] = np.bincount(
        lengths.bin_of(np.asarray(list(values), dtype=np.int64)), minlength=lengths.K
    ).astype(np.float64)
    counts += _PSEUDO_OUTCOMES * parent
    return np.asarray(counts / counts.sum())


def _power_of_two(tokens: int) -> int:
    return 1 << max(0, int(tokens - 1).bit_length())
