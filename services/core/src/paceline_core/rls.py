"""Recursive least squares for small models with bounded, non-negative coefficients.

Errors are weighed relative to the observation, because step times span decades. Forgetting is directional (Kulhavy,
Automatica 23, 1987): only what the new sample speaks about is forgotten, so that coefficients without
excitation stay frozen instead of drifting, and the information matrix stays bounded.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_MIN_OBSERVATION: Final = 1e-3
_HUBER: Final = 0.5
"""Relative error past which a sample's weight falls: one slow step (a page fault, a stop) must not count much."""
_WARM_UP: Final = 8
_REFRESH: Final = 256


class BoundedRls:
    """Estimates theta >= 0 in y = x . theta, x of D entries, y > 0."""

    def __init__(
        self,
        start: Sequence[float],
        spread: Sequence[float],
        upper: Sequence[float],
        *,
        memory_samples: float = 200.0,
    ) -> None:
        """`start`, `spread`, `upper` [D]: first values, how far off they may be (a standard deviation), and bounds.

        `memory_samples`: about how many samples are remembered when they speak about all directions in turn.
        """
        self._theta = np.asarray(start, dtype=np.float64).copy()
        self._upper = np.asarray(upper, dtype=np.float64)
        self._information = np.diag(1.0 / np.asarray(spread, dtype=np.float64) ** 2)
        self._covariance = np.linalg.inv(self._information)
        # A sample in D directions speaks about each only one time in D.
        self._forget = min(0.5, len(self._theta) / memory_samples)
        self.samples = 0

    @property
    def theta(self) -> FloatArray:
        """[D] The estimate."""
        return self._theta

    def update(self, x: Sequence[float], y: float) -> None:
        """Take in one sample. Values that are not finite, or y <= 0, are ignored."""
        if not (y > 0.0 and np.isfinite(y)):
            return
        scaled = np.asarray(x, dtype=np.float64) / max(y, _MIN_OBSERVATION)
        error = 1.0 - float(scaled @ self._theta)
        weight = 1.0
        if self.samples >= _WARM_UP and abs(error) > _HUBER:
            weight = _HUBER / abs(error)
        self._forget_along(scaled)
        self._information += weight * scaled[:, None] * scaled
        gain = self._covariance @ scaled
        denominator = 1.0 / weight + float(scaled @ gain)
        self._theta = self._theta + gain * (error / denominator)
        self._covariance -= gain[:, None] * gain / denominator
        self.samples += 1
        if self.samples % _REFRESH == 0:
            self._covariance = np.linalg.inv(
                self._information
            )  # rounding errors of the updates do not pile up
        if self._theta.min() < 0.0 or (self._theta > self._upper).any():
            self._project()

    def _forget_along(self, x: FloatArray) -> None:
        """Widen the variance of x . theta, and of nothing else, by 1 / (1 - forget)."""
        spoken = self._covariance @ x
        variance = float(x @ spoken)
        if variance >= self._forget:
            return  # fewer samples than the memory holds are known in this direction: nothing to forget
        self._information -= (self._forget / variance) * x[:, None] * x
        self._covariance += (self._forget / (1.0 - self._forget) / variance) * spoken[:, None] * spoken

    def _project(self) -> None:
        """The nearest allowed theta in the metric of the information matrix, by coordinate descent."""
        wanted, information = self._theta, self._information
        theta = np.clip(wanted, 0.0, self._upper)
        for _ in range(8):
            for i in range(len(theta)):
                slope = float(information[i] @ (theta - wanted))
                theta[i] = min(max(theta[i] - slope / information[i, i], 0.0), self._upper[i])
        self._theta = theta
