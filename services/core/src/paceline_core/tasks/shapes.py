"""The shape of a task: stage by stage who was called, and whether alone or side by side.

How many calls run side by side is left out: it is what the content of a task decides (how many thoughts a model wrote,
how many places it found), and what a plan needs of it stands in the forecast's numbers.
"""

import zlib
from typing import Final

import numpy as np

from paceline_core.tasks.graph import Stages

TOLD: Final = 64
"""Stages that a shape tells apart; of later ones it holds a checksum."""
_SINGLE, _PARALLEL = 0, 1

Shape = bytes
"""Two bytes a stage: the code of its actors, and 1 if several calls ran side by side."""


def shape_of(stages: Stages) -> Shape:
    """Of a finished task."""
    side_by_side = (stages.model_calls + stages.tool_calls > 1).astype(np.uint8)
    words = np.stack([stages.actors, np.where(side_by_side, _PARALLEL, _SINGLE).astype(np.uint8)], axis=1)
    told = words[:TOLD].tobytes()
    return told if len(stages) <= TOLD else told + zlib.crc32(words[TOLD:].tobytes()).to_bytes(4, "little")


def begins_with(shape: Shape, seen: Shape, running: bool) -> bool:
    """Whether a task that has done `seen` may become `shape`. A running stage may still get calls."""
    seen = seen[: 2 * TOLD]
    return shape.startswith(seen) or (running and shape.startswith(seen[:-1]) and len(shape) >= len(seen))
