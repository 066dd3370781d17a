"""The answers to the most similar prompts."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import sparse

from paceline_core.histogram import HistogramParams, prior
from paceline_core.lengths import FloatArray, K
from paceline_lab.lengths.design import RawFeatures, fit_design, raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import model_offsets, offsets_of, served_offsets, shifted, standardised
from paceline_lab.lengths.rivals.masses import counted, pooled
from paceline_predictor.model import LengthQuestion

_NEIGHBOURS: Final = 60
_SHARPNESS: Final = 8.0
"""A neighbour weighs exp(this * cosine)."""
_NUMBERS: Final = 0.08
"""Weight of a standardised number beside the text, whose rows have length 1."""
_APP: Final = 0.3
"""Of the same app tag."""
_CONCENTRATION: Final = 6.0
_CHUNK: Final = 256


class Neighbours:
    """A histogram of the answers to the nearest of the training questions, by the cosine of hashed text and numbers."""

    name = "nearest neighbours"

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        self._offsets = model_offsets(examples)
        self._served = served_offsets(examples, self._offsets)
        raw = raw_features([example.question for example in examples])
        self._design = fit_design(raw)
        self._rows = self._columns(raw)
        typical = standardised(examples, self._offsets)
        self._lengths = np.array([example.output_tokens for example in typical], dtype=np.float64)
        self._censored = np.array([example.censored for example in typical])
        self._weights = np.array([example.weight for example in examples])
        self._weights /= self._weights.mean()
        everything = np.zeros(len(examples), dtype=np.int64)
        counts = counted(self._lengths, self._censored, self._weights, everything, 1)
        self._marginal = pooled(counts, prior(HistogramParams())[None, :], 8.0)

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K]."""
        asked = self._columns(raw_features(questions))
        masses = np.empty((len(questions), K))
        for start in range(0, len(questions), _CHUNK):
            near = np.asarray(asked[start : start + _CHUNK].dot(self._rows.T).todense())
            masses[start : start + len(near)] = self._answer(near)
        return shifted(masses, offsets_of(self._served, questions))

    def _answer(self, near: FloatArray) -> FloatArray:
        """Bin masses of N questions with similarities [N, examples]."""
        n, k = len(near), min(_NEIGHBOURS, near.shape[1])
        found = np.argpartition(-near, k - 1, axis=1)[:, :k]
        closeness = np.take_along_axis(near, found, axis=1)
        weight = np.exp(_SHARPNESS * (closeness - closeness.max(axis=1, keepdims=True)))
        counts = counted(
            self._lengths[found].ravel(),
            self._censored[found].ravel(),
            (weight * self._weights[found]).ravel(),
            np.repeat(np.arange(n), k),
            n,
        )
        return pooled(counts, np.repeat(self._marginal, n, axis=0), _CONCENTRATION)

    def _columns(self, raw: RawFeatures) -> sparse.csr_matrix:
        numbers = sparse.csr_matrix(self._design.numbers(raw) * _NUMBERS)
        parts = [self._design.text(raw), numbers, _APP * self._design.apps(raw)]
        both = sparse.hstack(parts, format="csr")
        norms = np.sqrt(np.asarray(both.multiply(both).sum(axis=1)).ravel())
        return sparse.diags(1 / np.maximum(norms, 1e-6)).dot(both).tocsr()
