"""What follows from everything learned, per key and progress bucket, worked out once and read until the next outcome.

Of a live request the same is asked again and again, and the questions of a batch are of few keys.
"""

from collections.abc import Callable, Sequence

import numpy as np

from paceline_core.calibration.forecast import Known
from paceline_core.calibration.params import LengthKey
from paceline_core.calibration.recalibration import PIT_BINS
from paceline_core.lengths import FloatArray, K

Place = tuple[LengthKey, int]
"""A key, and the number of its progress bucket."""

_CAPACITY = 1024


class KeptKnown:
    """Rows of `Known` and coverages of P90, by place. Full: all are given up."""

    def __init__(self) -> None:
        self._slots: dict[Place, int] = {}
        self._alone: dict[Place, tuple[Known, FloatArray]] = {}
        scalars = (np.zeros(_CAPACITY) for _ in range(5))
        shipped, offset, scale, base_share, settled = scalars
        self._known = Known(
            shipped=shipped,
            offset=offset,
            scale=scale,
            histogram=np.zeros((_CAPACITY, K)),
            base_share=base_share,
            table=np.zeros((_CAPACITY, PIT_BINS + 1)),
            settled=settled,
        )
        self._coverage = np.zeros(_CAPACITY)

    def clear(self) -> None:
        """Something was learned."""
        self._slots.clear()
        self._alone.clear()

    def read(
        self,
        places: Sequence[Place],
        work_out: Callable[[Sequence[Place]], tuple[Known, FloatArray]],
    ) -> tuple[Known, FloatArray]:
        """What is known of N places, and coverages [N]; `work_out` says it of places that are not kept."""
        alone = self._alone.get(places[0]) if len(places) == 1 else None
        if alone is not None:
            return alone
        slots = [self._slots.get(place, -1) for place in places]
        if -1 in slots:
            missing = list(
                dict.fromkeys(place for place, slot in zip(places, slots, strict=True) if slot < 0)
            )
            if len(self._slots) + len(missing) > _CAPACITY:
                self.clear()
                missing = list(dict.fromkeys(places))
                if len(missing) > _CAPACITY:
                    return work_out(places)
            self._keep(missing, *work_out(missing))
            slots = [self._slots[place] for place in places]
        rows = np.array(slots, dtype=np.int64)
        found = self._known.part(rows), self._coverage[rows]
        if len(places) == 1:
            self._alone[places[0]] = found
        return found

    def _keep(self, places: Sequence[Place], known: Known, coverage: FloatArray) -> None:
        first = len(self._slots)
        rows = slice(first, first + len(places))
        self._known.put(rows, known)
        self._coverage[rows] = coverage
        for slot, place in enumerate(places, start=first):
            self._slots[place] = slot
