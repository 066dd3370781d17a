"""Gradient-boosted quantiles."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.design import RawFeatures, fit_design, raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import model_offsets, offsets_of, served_offsets
from paceline_lab.lengths.rivals.masses import from_quantiles
from paceline_predictor.model import LengthQuestion

_LEVELS: Final = np.array([0.05, 0.25, 0.5, 0.75, 0.9, 0.95])
_TAIL: Final = 1.5
_DIMENSIONS: Final = 24


class BoostedQuantiles:
    """One booster per level, on the numbers and the leading directions of the text; between levels it is linear.

    Cut answers are learned from as if they had ended there.
    """

    name = "boosted quantiles"

    def __init__(self, iterations: int = 80) -> None:
        self._iterations = iterations

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        self._offsets = model_offsets(examples)
        self._served = served_offsets(examples, self._offsets)
        questions = [example.question for example in examples]
        raw = raw_features(questions)
        self._design = fit_design(raw)
        self._svd = TruncatedSVD(_DIMENSIONS, n_iter=3, random_state=0).fit(self._design.text(raw))
        columns = self._columns(raw)
        target = np.log([example.output_tokens for example in examples]) - offsets_of(
            self._offsets, questions
        )
        weight = np.array([example.weight for example in examples])
        with threadpool_limits(1):  # its threads only get in each other's way where others work too
            self._boosters = [self._booster(float(level), columns, target, weight) for level in _LEVELS]

    def _booster(
        self, level: float, columns: FloatArray, target: FloatArray, weight: FloatArray
    ) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            max_iter=self._iterations,
            learning_rate=0.08,
            max_leaf_nodes=15,
            min_samples_leaf=20,
            random_state=0,
        ).fit(columns, target, sample_weight=weight)

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K]."""
        columns = self._columns(raw_features(questions))
        logs = np.stack([booster.predict(columns) for booster in self._boosters], axis=1)
        return from_quantiles(_LEVELS, logs + offsets_of(self._served, questions)[:, None], _TAIL)

    def _columns(self, raw: RawFeatures) -> FloatArray:
        text = self._svd.transform(self._design.text(raw))
        apps = self._design.apps(raw).toarray()
        return np.concatenate([raw.numeric, text, apps], axis=1, dtype=np.float64)
