"""Chat tasks: 14 chat calls each, which is what the published totals of a task are of a call's.

Prompt 1300 / 93 = 14.0, output 4458 / 318 = 14.0, and the standard deviations are those of 14 independent calls. No
source gives the stages; here they are a plan, three rounds of four thoughts, and an answer.
"""

import numpy as np

from paceline_lab.workloads.lengths import Array, QuantileCurve, whole
from paceline_lab.workloads.research import chain_of_stages
from paceline_lab.workloads.trace import Call

SHAPE = (1, 4, 4, 4, 1)
_REFERENCE_TASKS = 4096


def chat_tasks(
    rng: np.random.Generator,
    count: int,
    prompt: QuantileCurve,
    output: QuantileCurve,
    prompt_total: QuantileCurve,
) -> list[tuple[Call, ...]]:
    """Graphs of `count` tasks of calls with chat lengths.

    The upper tail of independent sums is some 9 % too long for prompts: a task's prompts are scaled so that its total
    has the published distribution.
    """
    calls = sum(SHAPE)
    stages = np.repeat(np.arange(len(SHAPE)), SHAPE)
    prompts = prompt.at(rng.random((count, calls)))
    # A fixed reference, so that a task does not depend on the others drawn with it.
    reference = np.random.default_rng(14)
    sums = np.sort(prompt.at(reference.random((_REFERENCE_TASKS, calls))).sum(axis=1))
    totals: Array = prompts.sum(axis=1)
    levels = (np.searchsorted(sums, totals) + 0.5) / (_REFERENCE_TASKS + 1)
    prompts *= (prompt_total.at(levels) / totals)[:, None]
    outputs = output.at(rng.random((count, calls)))
    return [
        chain_of_stages(stages, whole(row_in), whole(row_out))
        for row_in, row_out in zip(prompts, outputs, strict=True)
    ]
