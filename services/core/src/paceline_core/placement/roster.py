"""Who is in the fleet: what changes when an engine comes up, and not with its load."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Roster:
    """Engines in the order of all fleet columns. Keep one object until the fleet changes: what is derived from the
    names is remembered in it."""

    engine_ids: tuple[str, ...]
    incarnations: tuple[int, ...]
    """0: it was never up."""
    models: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.engine_ids)

    @cached_property
    def row_of_id(self) -> Mapping[str, int]:
        """Row of each engine id."""
        return {engine_id: row for row, engine_id in enumerate(self.engine_ids)}

    @cached_property
    def row_of_incarnation(self) -> Mapping[int, int]:
        """Row of each incarnation."""
        return {incarnation: row for row, incarnation in enumerate(self.incarnations)}

    def serving(self, model: str) -> NDArray[np.bool_]:
        """bool[E]: which engines serve the model; all of them for an empty name. Not to be written."""
        return self._all if not model else self._by_model.get(model, self._none)

    @cached_property
    def _by_model(self) -> Mapping[str, NDArray[np.bool_]]:
        names = np.array(self.models, dtype=object)
        return {model: np.asarray(names == model, dtype=np.bool_) for model in set(self.models)}

    @cached_property
    def _all(self) -> NDArray[np.bool_]:
        return np.ones(len(self.engine_ids), dtype=np.bool_)

    @cached_property
    def _none(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.engine_ids), dtype=np.bool_)
