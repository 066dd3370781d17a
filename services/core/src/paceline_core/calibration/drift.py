"""What is watched of the answers that were given: coverage, PIT, bias, width."""

from dataclasses import dataclass

import numpy as np

from paceline_core.calibration.evidence import Rows
from paceline_core.calibration.recalibration import LEVELS
from paceline_core.lengths import FloatArray

PIT_DECILES = 10
_HITS = slice(0, 3)
_BIAS, _WIDTH = 3, 4
_PIT = slice(5, 5 + PIT_DECILES)
_COLUMNS = 5 + PIT_DECILES

_ALARMING_BIAS = 0.35
"""In the logarithm, after the learned offset."""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The last outcomes of a key, a model or all, older ones counting less."""

    observed: int
    """Outcomes since it came in."""
    scored: float
    """Decayed outcomes behind the coverage of P90: those of which anything was known."""
    coverage: tuple[float, float, float]
    """Share within the declared P50, P90, P95; nan: not known."""
    pit: tuple[float, ...]
    """Shares of the ten equal bins of the PIT of the answers; each 0.1 when calibrated."""
    bias: float
    """Mean of log(length) minus its forecast after the offset; 0: none."""
    width: float
    """Mean of log(P90 / P50)."""
    alarm: str
    """What is wrong; empty: nothing."""


class Drift:
    """Decayed scores per row."""

    def __init__(self, half_life: float, min_outcomes: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._min = min_outcomes
        self.sums: FloatArray = np.zeros((0, _COLUMNS))
        self.weights: FloatArray = np.zeros((0, _COLUMNS))
        self.counts: FloatArray = np.zeros(0)

    def grow(self, rows: int) -> None:
        """Room for `rows` rows."""
        more = rows - len(self.counts)
        self.sums = np.concatenate([self.sums, np.zeros((more, _COLUMNS))])
        self.weights = np.concatenate([self.weights, np.zeros((more, _COLUMNS))])
        self.counts = np.concatenate([self.counts, np.zeros(more)])

    def clear(self, row: int) -> None:
        """Forget a row."""
        self.sums[row] = self.weights[row] = self.counts[row] = 0.0

    def forget(self) -> None:
        """Of all rows all but the number of outcomes."""
        self.sums[:] = self.weights[:] = 0.0

    def observed(self, row: int) -> int:
        """Outcomes of a row."""
        return int(self.counts[row])

    def add(
        self, paths: Rows, hits: FloatArray, pit: FloatArray, bias: FloatArray, width: FloatArray
    ) -> None:
        """An outcome for each path: hits [N, 3] and PIT [N], nan where not known; log residuals and widths [N]."""
        n = len(paths)
        values = np.full((n, _COLUMNS), np.nan)
        values[:, _HITS] = hits
        values[:, _BIAS] = bias
        values[:, _WIDTH] = width
        known = np.flatnonzero(~np.isnan(pit))
        values[known, _PIT] = 0.0
        values[
            known, _PIT.start + np.minimum((pit[known] * PIT_DECILES).astype(np.int64), PIT_DECILES - 1)
        ] = 1.0
        weight = (~np.isnan(values)).astype(np.float64)
        keep = np.where(weight > 0, self._keep, 1.0)[:, None, :]
        self.sums[paths] = self.sums[paths] * keep + np.where(weight > 0, values, 0.0)[:, None, :]
        self.weights[paths] = self.weights[paths] * keep + weight[:, None, :]
        self.counts[paths] += 1

    def coverage_p90(self, rows: Rows) -> FloatArray:
        """[N] Coverage of P90; 0: not known, known ones are at least 0.001."""
        scored = self.weights[rows, 1]
        share = self.sums[rows, 1] / np.maximum(scored, 1e-12)
        return np.asarray(np.where(scored >= self._min, np.maximum(share, 1e-3), 0.0))

    def report(self, row: int) -> DriftReport:
        """What is to be said of a row."""
        weights = self.weights[row]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self.sums[row] / weights
        coverage = mean[_HITS]
        scored = float(weights[1])
        return DriftReport(
            observed=self.observed(row),
            scored=scored,
            coverage=(float(coverage[0]), float(coverage[1]), float(coverage[2])),
            pit=tuple(mean[_PIT].tolist()),
            bias=float(mean[_BIAS]),
            width=float(mean[_WIDTH]),
            alarm=self._alarm(mean, weights),
        )

    def _alarm(self, mean: FloatArray, weights: FloatArray) -> str:
        said = []
        for level, covered, scored in zip(LEVELS, mean[_HITS], weights[_HITS], strict=True):
            # A decayed mean of n outcomes varies like one of n / 2 to n: three standard errors of the smaller.
            slack = 0.02 + 3 * np.sqrt(level * (1 - level) / max(scored / 2, 1.0))
            if scored >= self._min and covered < level - slack:
                said.append(f"P{100 * level:.0f} covers only {covered:.0%} of the last outcomes")
        if weights[_BIAS] >= self._min and abs(mean[_BIAS]) > _ALARMING_BIAS:
            said.append(f"answers are {np.exp(mean[_BIAS]):.2f} times as long as forecast")
        return "; ".join(said)
