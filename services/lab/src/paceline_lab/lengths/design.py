"""Features of many questions as one sparse matrix: tf-idf of the hashed words, beside it numbers and the app tag.

The app tag's columns stand apart from the words: among them it would be scaled down as one word of hundreds.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from paceline_predictor.features import APP_BUCKETS, TEXT_BUCKETS, features
from paceline_predictor.model import LengthQuestion

_CHUNK: Final = 512
_LIMIT: Final = 4.0
_LEAST_SCALE: Final = 1e-3

FloatArray = NDArray[np.float64]
CsrMatrix = Any
"""scipy.sparse.csr_matrix, which has no types."""


@dataclass(frozen=True)
class RawFeatures:
    """Features of N questions, the counts sparse: dense ones of ten thousand questions fill 160 MB."""

    text: CsrMatrix
    """float32[N, TEXT_BUCKETS]: counts."""
    numeric: NDArray[np.float32]
    """float32[N, F]"""


def raw_features(questions: Sequence[LengthQuestion]) -> RawFeatures:
    """What `features` gives, in chunks. Raises ValueError on no questions.

    Remembered for the last questions: several learners ask about the same. Not to be written to.
    """
    if not questions:
        raise ValueError("no questions")
    return _raw_features(tuple(questions))


@functools.lru_cache(maxsize=2)
def _raw_features(questions: tuple[LengthQuestion, ...]) -> RawFeatures:
    texts, numbers = [], []
    for start in range(0, len(questions), _CHUNK):
        found = features(questions[start : start + _CHUNK])
        texts.append(sparse.csr_matrix(found.text))
        numbers.append(found.numeric)
    return RawFeatures(sparse.vstack(texts, format="csr"), np.concatenate(numbers))


@dataclass(frozen=True)
class Design:
    """How features become the columns of a linear model."""

    idf: NDArray[np.float32]
    """float32[TEXT_BUCKETS]"""
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    """float32[F]"""

    def text(self, raw: RawFeatures) -> CsrMatrix:
        """tf-idf rows of length 1, float32[N, TEXT_BUCKETS]; without the app."""
        weighted = raw.text.copy()
        weighted.data = np.log1p(weighted.data)
        weighted = weighted.multiply(self.idf).tocsr()
        norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        return sparse.diags(1 / np.maximum(norms, 1e-6)).dot(weighted).tocsr().astype(np.float32)

    def numbers(self, raw: RawFeatures) -> NDArray[np.float32]:
        """Standardised numbers within 4 of 0, float32[N, F]."""
        standard = (raw.numeric - self.centre) * self.scale
        return np.asarray(np.clip(standard, -_LIMIT, _LIMIT), dtype=np.float32)

    def apps(self, raw: RawFeatures) -> CsrMatrix:
        """A column of each bucket of app tags, float32[N, A]: 1 in one of them."""
        return raw.text[:, APP_BUCKETS]

    def rows(self, raw: RawFeatures) -> CsrMatrix:
        """All, float32[N, TEXT_BUCKETS + F + A]."""
        numbers = sparse.csr_matrix(self.numbers(raw))
        return sparse.hstack([self.text(raw), numbers, self.apps(raw)], format="csr")


def fit_design(raw: RawFeatures) -> Design:
    """Weights of words and scales of numbers of these questions."""
    n = raw.text.shape[0]
    documents = np.asarray((raw.text > 0).sum(axis=0)).ravel()
    idf = np.log((1 + n) / (1 + documents)) + 1
    idf[APP_BUCKETS] = 0.0
    spread = raw.numeric.std(axis=0)
    scale = np.where(spread > _LEAST_SCALE, 1 / np.maximum(spread, _LEAST_SCALE), 0.0)
    assert len(idf) == TEXT_BUCKETS
    return Design(
        idf.astype(np.float32), raw.numeric.mean(axis=0).astype(np.float32), scale.astype(np.float32)
    )
