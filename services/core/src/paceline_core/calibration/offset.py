"""A length distribution stretched in the logarithm: another model's answers are longer, shorter, or vary more."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline_core.lengths import MIDDLE, UPPER, FloatArray, K

_LOG_EDGES = np.log(np.concatenate([[0.5], UPPER]))
"""Log lengths at the borders of the bins, float64[K + 1]."""
_STEPS = np.arange(K + 1.0)
LOG_MIDDLE = np.log(MIDDLE)
"""Log length that stands for a bin, float64[K]."""
_LARGEST = 10.0
"""No model writes e^10 times as much as another."""
_MOMENTS = np.stack([LOG_MIDDLE, LOG_MIDDLE**2 + (np.diff(_LOG_EDGES) ** 2) / 12], axis=1)


def log_moments(probabilities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean [N] and variance [N] of the log length, for bin masses [N, K] that sum to 1."""
    moments = probabilities @ _MOMENTS
    return moments[:, 0], np.maximum(moments[:, 1] - moments[:, 0] ** 2, 1e-4)


def stretched(
    probabilities: FloatArray, mean: FloatArray, offset: FloatArray, scale: FloatArray
) -> FloatArray:
    """Bin masses [N, K] of exp(mean + offset + scale * (log L - mean)), for L with bin masses [N, K]; others [N]."""
    cdf = stretched_cdf(probabilities, mean, offset, scale)
    masses = cdf.copy()
    masses[:, 1:] -= cdf[:, :-1]
    return masses


def stretched_cdf(
    probabilities: FloatArray, mean: FloatArray, offset: FloatArray, scale: FloatArray
) -> FloatArray:
    """The CDF [N, K] of what `stretched` gives the masses of."""
    n = len(probabilities)
    cdf = np.zeros((n, K + 1))
    np.add.accumulate(probabilities, axis=1, out=cdf[:, 1:])
    back = mean[:, None] + (_LOG_EDGES[1:-1] - (mean + offset)[:, None]) / scale[:, None]
    out = np.empty((n, K))
    out[:, K - 1] = cdf[:, K]
    if n == 1:  # the same in one step
        out[0, : K - 1] = np.interp(back[0], _LOG_EDGES, cdf[0])
        return out
    at = np.interp(back, _LOG_EDGES, _STEPS)
    bin_ = np.minimum(at.astype(np.int64), K - 1)
    share = at - bin_
    rows = np.arange(n)[:, None]
    below = cdf[rows, bin_]
    out[:, : K - 1] = below + share * (cdf[rows, bin_ + 1] - below)
    return out


@dataclass(frozen=True, slots=True)
class ShippedOffsets:
    """Log-space offsets of (model, app) that training has found: what the base is stretched by before anything is
    learned. Written in a model file as {model: {"log": x, "outcomes": n, "apps": {app: [x, n]}}}; an app's x is whole,
    its model's is not to be added."""

    models: Mapping[str, tuple[float, float]]
    """Offset, and outcomes behind it."""
    pairs: Mapping[tuple[str, str], tuple[float, float]]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "ShippedOffsets":
        """From what a model file says. Raises ValueError when it is not of that form, or a number is absurd."""
        models: dict[str, tuple[float, float]] = {}
        pairs: dict[tuple[str, str], tuple[float, float]] = {}
        try:
            for model, entry in document.items():
                models[model] = (float(entry["log"]), float(entry["outcomes"]))
                for app, (log, outcomes) in entry.get("apps", {}).items():
                    pairs[model, app] = (float(log), float(outcomes))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"offsets of models cannot be read: {error!r}") from None
        for log, outcomes in [*models.values(), *pairs.values()]:
            if not (abs(log) <= _LARGEST and 0 <= outcomes < math.inf):
                raise ValueError(f"an offset of {log} from {outcomes} outcomes cannot be right")
        return cls(models, pairs)

    def of(self, model: str, app: str) -> tuple[float, float, float]:
        """Offset of a pair; outcomes behind its model's and behind its own (0: not known)."""
        log, of_model = self.models.get(model, (0.0, 0.0))
        log, of_pair = self.pairs.get((model, app), (log, 0.0))
        return log, of_model, of_pair


NO_OFFSETS = ShippedOffsets({}, {})
