"""The router's own idea of output lengths, for when the predictor is down: decayed counts per (model, app)."""

from collections import OrderedDict
from typing import Final

import numpy as np

from paceline.common.v1 import estimate_pb2
from paceline_core import lengths

_DECAY: Final = 0.995
_PRIOR_WEIGHT: Final = 4.0
_MAX_KEYS: Final = 1024
_PRIOR_MEDIAN_TOKENS: Final = 150.0
_PRIOR_LOG_WIDTH: Final = 1.2


def _prior() -> lengths.FloatArray:
    """Log-normal around a chat-like length."""
    place = (np.log(lengths.EDGES.astype(np.float64)) - np.log(_PRIOR_MEDIAN_TOKENS)) / _PRIOR_LOG_WIDTH
    mass = np.exp(-(place**2) / 2)
    return np.asarray(mass / mass.sum())


class FallbackHistograms:
    """Decayed histograms over the bins of `paceline_core.lengths`, the least recently used key forgotten
    first."""

    def __init__(self) -> None:
        self._prior = _prior()
        self._counts: OrderedDict[tuple[str, str], lengths.FloatArray] = OrderedDict()

    def estimate(self, model: str, app: str) -> estimate_pb2.LengthEstimate:
        """What was seen of this app, else of the model, mixed with the prior."""
        counts = self._counts.get((model, app))
        if counts is None:
            counts = self._counts.get((model, ""))
        mass = self._prior * _PRIOR_WEIGHT if counts is None else counts + self._prior * _PRIOR_WEIGHT
        return estimate_pb2.LengthEstimate(
            probabilities=(mass / mass.sum()).tolist(), model_version="router", source="fallback"
        )

    def learn(self, model: str, app: str, output_tokens: int) -> None:
        """Count one answer, for its app and for its model."""
        place = int(lengths.bin_of(max(output_tokens, 1)))
        for key in {(model, app), (model, "")}:
            counts = self._counts.setdefault(key, np.zeros(lengths.K))
            counts *= _DECAY
            counts[place] += 1
            self._counts.move_to_end(key)
        while len(self._counts) > _MAX_KEYS:
            self._counts.popitem(last=False)
