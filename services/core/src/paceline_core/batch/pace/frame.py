"""The run set is kept for a frame of some steps, and every plan within a frame says so.

A plan remembers nothing: within a frame it reads who runs from the view. Plans are written down alike, whoever made
them: the head in order of rows, behind it whoever else may run in an order that time does not change. So a plan made
anew within the frame, without an event, is the same one.
"""

import numpy as np

from paceline_core.batch.ranking import leading, list_length
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, FloatArray, IntArray

_LONGEST_MS = 250.0
"""Longest frame, by the model: where steps are slow it has fewer."""


def frame_steps(view: BatchView, most_steps: int) -> int:
    """Steps of a frame."""
    step = view.model.decode_ms(view.capacity.max_batch, 0.0)
    return max(1, min(most_steps, int(_LONGEST_MS / step) if step > 0 else 1))


def running_head(view: BatchView, runnable: IntArray) -> IntArray | None:
    """[B] The run set, if it fills the batch or leaves nobody out: nothing happened that asks for another."""
    running = runnable[view.state[runnable] == RunState.RUNNING.value]
    whole = len(running) == min(view.capacity.max_batch, len(runnable))
    return running if whole else None


def in_order(
    view: BatchView, head: IntArray, runnable: IntArray, due: FloatArray, gone: IntArray | None = None
) -> IntArray:
    """[M] The list: `head` by row, then others of `runnable` but for those `gone`: first who has KV, then by due time
    (`due` [N])."""
    left = np.zeros(len(view), dtype=bool)
    left[runnable] = True
    left[head] = False
    if gone is not None:
        left[gone] = False
    has = view.kv_tokens > 0
    resident, others = np.flatnonzero(left & has), np.flatnonzero(left & ~has)
    keys = (due, view.row_id)
    room = max(0, list_length(view) - len(head))
    resident = leading(resident, keys, room)
    others = leading(others, keys, room - len(resident))
    return np.concatenate([head[np.argsort(view.row_id[head])], resident, others])
