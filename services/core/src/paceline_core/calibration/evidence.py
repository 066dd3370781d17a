"""Decayed means per key over a path of levels, each level the prior of the next.

Everything that is learned online is a mean of something over outcomes: shares of bins, log residuals, shares of a
mixture. With S the decayed sum and W the decayed weight at a level and c its concentration (what the level above is
worth, in outcomes),

    mean = (S + c * mean of the level above) / (W + c)

which for shares is the Dirichlet mean, and for a normal mean with known variance the posterior mean.
"""

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import FloatArray

Rows = NDArray[np.int64]

BLANK = 0
"""A row that nothing was ever added to: keys that are not known read it."""


class Evidence:
    """Decayed sums and weights: `columns` per row, row 0 stays blank."""

    def __init__(self, columns: int, keep: FloatArray) -> None:
        """`keep` float64[columns]: what an older outcome counts after one more of its row."""
        self._keep = keep
        self.sums: FloatArray = np.zeros((1, columns))
        self.weights: FloatArray = np.zeros((1, columns))

    def grow(self, rows: int) -> None:
        """Room for `rows` rows."""
        more = rows - len(self.sums)
        if more > 0:
            blank = np.zeros((more, self.sums.shape[1]))
            self.sums = np.concatenate([self.sums, blank])
            self.weights = np.concatenate([self.weights, blank])

    def clear(self, rows: slice | int) -> None:
        """Forget what rows hold."""
        self.sums[rows] = 0.0
        self.weights[rows] = 0.0

    def mean(self, paths: Rows, prior: FloatArray, concentration: FloatArray) -> FloatArray:
        """float64[N, columns]. `paths` [N, levels]: rows from the top level down; `prior` [columns] or [N, columns];
        `concentration` [levels, columns] or [N, levels, columns]."""
        sums, weights = self.sums[paths], self.weights[paths]
        total = weights + concentration
        mean = prior
        for level in range(paths.shape[1]):
            c = concentration[..., level, :]
            mean = (sums[:, level] + c * mean) / total[:, level]
        return mean

    def add(self, paths: Rows, values: FloatArray, weight: FloatArray) -> None:
        """One outcome for each path, at all its levels. `values`, `weight` [N, columns]; where the weight is 0 nothing
        decays. No row may stand in two paths."""
        keep = (self._keep if weight.all() else np.where(weight > 0, self._keep, 1.0))[..., None, :]
        self.sums[paths] = self.sums[paths] * keep + (values * weight)[:, None, :]
        self.weights[paths] = self.weights[paths] * keep + weight[:, None, :]
