"""The shape of a task: stage by stage who was called and how many calls there were on a log2 scale, lengths apart.

It is read off the pattern, so stages that share a position (from the 13th on) are compared as a group.
"""

import numpy as np
from numpy.typing import NDArray

from paceline_core.tasks.graph import Stages
from paceline_core.tasks.pattern import LOG_OF_BYTE, MODEL_CALLS, TOOL_CALLS, A, pattern_of

Shape = tuple[int, bytes, bytes]


def shape_of_cells(stages: float, cells: NDArray[np.uint8]) -> Shape:
    """Of a pattern."""
    logs = cells[:, [MODEL_CALLS, TOOL_CALLS]] * LOG_OF_BYTE[[MODEL_CALLS, TOOL_CALLS]]
    calls = np.rint(np.expm1(logs)).sum(axis=1)
    classes = np.floor(np.log2(np.maximum(calls, 1))).astype(np.uint8)
    return int(stages), cells[:, A].tobytes(), classes.tobytes()


def shape_of(stages: Stages) -> Shape:
    """Of a finished task."""
    pattern = pattern_of("", stages)
    return shape_of_cells(pattern.stages, pattern.cells)
