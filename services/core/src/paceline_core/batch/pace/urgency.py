"""Who has to run now: laxity of what is to be in time, and streams that are ahead of their timeline.

Places in the list, best first: URGENT cannot wait, by laxity; WANTED is to be served and can wait, by density; SPARE
was not admitted, or asks for no time, and takes what is left; AHEAD has tokens in hand; LOST is in time no more.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from paceline_core.batch.pace.needs import Needs, Pace
from paceline_core.batch.view import BoolArray, FloatArray, IntArray


class Place(IntEnum):
    """In the order in which they get slots."""

    URGENT = 0
    WANTED = 1
    SPARE = 2
    AHEAD = 3
    LOST = 4


@dataclass(frozen=True, slots=True)
class Margins:
    """When waiting becomes risky."""

    hold_ms: float
    """Time for which a run set is kept: what would be late within it is urgent."""
    first_share: float
    """Share of its budget within which a first token is urgent."""
    length_doubt: float
    """Standard deviations of its length that a deadline's laxity allows for."""


def laxity_ms(needs: Needs, pace: Pace, deviation: FloatArray, doubt: float) -> FloatArray:
    """[M] Time that may pass idle: until the next token must be begun (stream), or all that are to come (deadline,
    task), with room for a longer answer by its standard deviation [M]."""
    of_stream = needs.next_ms - needs.prefill_ms - pace.step_ms
    of_bounded = needs.due_ms - needs.alone_ms - doubt * deviation * pace.step_ms
    return np.asarray(np.where(needs.stream, of_stream, of_bounded))


def places(
    needs: Needs,
    pace: Pace,
    laxity: FloatArray,
    admitted: BoolArray,
    lost: BoolArray,
    first_budget_ms: FloatArray,
    margins: Margins,
) -> IntArray:
    """[M] `Place` of each. `first_budget_ms` [M]: the budget of a stream's first token while it has none, else 0."""
    # A stream that runs goes on until it has twice in hand what makes a waiting one urgent: fewer changes.
    hold = margins.hold_ms * np.where(needs.running & needs.stream, 2.0, 1.0)
    urgent_below = np.maximum(hold, margins.first_share * first_budget_ms)
    late = needs.stream & (laxity < 0.0)
    urgent = admitted & (laxity < urgent_below) & ~late
    ahead = needs.stream & admitted & ~urgent & ~late & (first_budget_ms <= 0.0)
    place = np.where(admitted, Place.WANTED, Place.SPARE)
    place = np.where(urgent, Place.URGENT, place)
    place = np.where(ahead, Place.AHEAD, place)
    return np.asarray(np.where(lost, Place.LOST, place), dtype=np.int64)
