"""What cannot be in time any more: it stands last, and is given up where nothing is lost by that."""

import numpy as np

from paceline_core.batch.pace.needs import Needs
from paceline_core.batch.view import BatchView, BoolArray, FloatArray


def lost(
    view: BatchView, needs: Needs, p_meet: FloatArray, in_time: FloatArray, least_chance: float
) -> BoolArray:
    """[M] True where too little can come of it: a stream none of whose tokens can be in time, a deadline whose chance
    is under `least_chance`, and every call of a task of which one call is."""
    hopeless = (needs.bounded & (p_meet < least_chance)) | (needs.stream & (in_time < 1.0))
    task = view.task[needs.row]
    dead = hopeless & needs.task & (task >= 0)
    if dead.any():
        gone = np.zeros(int(task.max()) + 1, dtype=bool)
        gone[task[dead]] = True
        hopeless = hopeless | (needs.task & (task >= 0) & gone[np.maximum(task, 0)])
    return np.asarray(hopeless)


def shed(view: BatchView, needs: Needs, hopeless: BoolArray, crowded: bool) -> BoolArray:
    """[M] True where the request ends now: its client wants that, or nothing was done for it while others wait."""
    rows = needs.row
    untouched = (view.generated[rows] == 0) & (view.kv_tokens[rows] == 0)
    return np.asarray(hopeless & (view.drops[rows] | (untouched & crowded)))
