"""Who has to run now: streams whose next tokens fall due, answers that can wait no longer."""

from enum import IntEnum

import numpy as np

from paceline_core.batch.pace.needs import Needs, Pace
from paceline_core.batch.view import BoolArray, FloatArray, IntArray


class Place(IntEnum):
    """Who gets a slot before whom."""

    DUE = 0
    """Streams that would run dry, by laxity."""
    URGENT = 1
    """Deadlines and tasks that can wait no longer, by density: where they are too many, the best are served."""
    WANTED = 2
    """Admitted, and can wait; by density."""
    SPARE = 3
    """Not admitted, or without a target, by density: what is left over is theirs."""
    AHEAD = 4
    """Streams with tokens in hand, by laxity: they pause in place."""
    LOST = 5
    """In time no more."""


def laxity_ms(needs: Needs, pace: Pace, deviation: FloatArray, doubt: float) -> FloatArray:
    """[M] Time that may pass idle: until the next token must be begun (stream), or all that are to come (deadline,
    task), with room for an answer that is longer by `doubt` times its standard deviation [M]."""
    of_stream = needs.next_ms - needs.prefill_ms - pace.step_ms
    # A task's own deadline counts, not that of the call: behind its plan it may still catch up, and in overload all are
    # behind, so that the budgets of calls would bring on those that are to be left out.
    of_bounded = needs.end_ms - needs.alone_ms - (needs.rest_tokens + doubt * deviation) * pace.step_ms
    return np.asarray(np.where(needs.stream, of_stream, of_bounded))


def places(
    needs: Needs,
    laxity: FloatArray,
    admitted: BoolArray,
    lost: BoolArray,
    first_ms: FloatArray,
    hold_ms: float,
) -> IntArray:
    """[M] `Place` of each. What would be late before the run set changes again, in `hold_ms`, has to run; a first token
    has to when its laxity is under `first_ms` [M], 0 for streams that have theirs."""
    late = needs.stream & (laxity < 0.0)
    pressed = admitted & ~late & (laxity < np.maximum(hold_ms, first_ms))
    ahead = needs.stream & admitted & ~late & (first_ms <= 0.0)
    place = np.full(len(late), Place.SPARE.value, dtype=np.int64)
    place[admitted] = Place.WANTED.value
    place[ahead] = Place.AHEAD.value
    place[pressed] = np.where(needs.stream[pressed], Place.DUE.value, Place.URGENT.value)
    place[lost] = Place.LOST.value
    return place
