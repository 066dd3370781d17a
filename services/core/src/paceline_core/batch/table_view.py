"""Rows of a table as a policy sees them, with nothing copied that the policy does not read."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.estimates import LengthEstimates
from paceline_core.batch.view import BatchView, Capacity, IntArray
from paceline_core.engine_model import EngineModel

_OWN: Final = frozenset({"row_id", "lengths", "capacity", "model", "step", "planned_step"})
_COLUMNS: Final = frozenset(BatchView.__slots__) - _OWN


class TableView(BatchView):
    """A `BatchView` of rows of a table that has columns of the same names.

    A column is gathered when it is first read; rows that lie side by side are not even that, but read in place. So a
    view is good until its table changes.
    """

    __slots__ = ("_at", "_table")

    def __init__(
        self,
        table: object,
        row_id: IntArray,
        lengths: LengthEstimates,
        capacity: Capacity,
        model: EngineModel,
        step: int,
        planned_step: int,
    ) -> None:
        own = (row_id, lengths, capacity, model, step, planned_step, table, _place(row_id))
        names = ("row_id", "lengths", "capacity", "model", "step", "planned_step", "_table", "_at")
        for name, value in zip(names, own, strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> NDArray[Any]:
        """A column that is not there yet."""
        if name not in _COLUMNS:
            raise AttributeError(name)
        column: NDArray[Any] = getattr(self._table, name)[self._at]
        column.flags.writeable = False
        object.__setattr__(self, name, column)
        return column


def _place(rows: IntArray) -> IntArray | slice:
    """What picks `rows`: a slice where they lie side by side, in their order."""
    if len(rows):
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
            return slice(first, last + 1)
    return rows
