"""Ridge on the log length, with the distribution of what it misses by."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from sklearn.linear_model import Ridge

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.design import fit_design, raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import model_offsets, offsets_of, served_offsets
from paceline_lab.lengths.rivals.masses import from_residuals
from paceline_lab.lengths.splits import fold_of
from paceline_predictor.model import LengthQuestion

_ALPHA: Final = 2.0
_FOLDS: Final = 4


class RidgeLengths:
    """One linear model of tf-idf and numbers; its residuals on prompts it had not seen are the distribution.

    Cut answers are learned from as if they had ended there: a least-squares fit has no better use for them.
    """

    name = "ridge"

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        self._offsets = model_offsets(examples)
        self._served = served_offsets(examples, self._offsets)
        questions = [example.question for example in examples]
        raw = raw_features(questions)
        self._design = fit_design(raw)
        columns = self._design.rows(raw)
        target = np.log([example.output_tokens for example in examples]) - offsets_of(
            self._offsets, questions
        )
        weight = np.array([example.weight for example in examples])
        fold = np.array([fold_of(example.prompt_id, _FOLDS, seed=1) for example in examples])
        residuals = np.zeros(len(target))
        for k in range(_FOLDS):
            rest, held = fold != k, fold == k
            if held.any() and rest.any():
                fitted = _ridge(columns[rest], target[rest], weight[rest])
                residuals[held] = target[held] - fitted.predict(columns[held])
        order = np.argsort(residuals)
        self._residuals, self._weights = residuals[order], weight[order]
        self._ridge = _ridge(columns, target, weight)

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K]."""
        columns = self._design.rows(raw_features(questions))
        centres = self._ridge.predict(columns) + offsets_of(self._served, questions)
        return from_residuals(np.asarray(centres, dtype=np.float64), self._residuals, self._weights)


def _ridge(columns: Any, target: FloatArray, weight: FloatArray) -> Any:
    return Ridge(alpha=_ALPHA, solver="sparse_cg", tol=1e-3).fit(columns, target, sample_weight=weight)
