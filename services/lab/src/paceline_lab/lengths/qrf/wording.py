"""Hashed words to a few components: those that vary most, and those that tell lengths and kinds of task."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge

from paceline_lab.lengths.design import CsrMatrix
from paceline_lab.lengths.graph import TextFrontEnd
from paceline_lab.lengths.qrf.forest import Float32, Float64
from paceline_lab.lengths.qrf.inputs import Rows
from paceline_lab.lengths.splits import fold_of

_FOLDS = 5


def fit_words(
    rows: Rows, targets: Float64, components: int, supervised: bool, ridge: float, seed: int
) -> tuple[TextFrontEnd | None, Float32]:
    """The text front end of the graph, and the components of the training rows, float32[N, C].

    `components` by latent semantic analysis of the prompts, each once. With `supervised` further ones: what ridge
    regressions on the words say of `targets` [N, T] and of the family; those of a training row come from a fit that has
    not seen its prompt, those of the graph from all rows.
    """
    if not components and not supervised:
        return None, np.zeros((len(rows), 0), dtype=np.float32)
    first = np.flatnonzero(rows.arrivals) if rows.arrivals.any() else np.arange(len(rows))
    first = first[np.unique(rows.prompts[first], return_index=True)[1]]
    idf = _document_weights(rows, first)
    words = _weighted(rows.text, idf)
    projections, columns = [], []
    if components:
        rank = max(1, min(components, len(first) - 1))
        found = TruncatedSVD(rank, n_iter=5, random_state=seed).fit(words[first]).components_
        projections.append(found.T)
        columns.append(words @ found.T)
    if supervised:
        families = np.unique(rows.families)
        goals = np.concatenate([targets, rows.families[:, None] == families], axis=1)
        goals = goals - rows.weights @ goals / rows.weights.sum()
        projections.append(_ridge(words, goals, rows.weights, ridge))
        columns.append(_cross_fitted(words, goals, rows, ridge))
    front = TextFrontEnd(idf, np.concatenate(projections, axis=1).astype(np.float32))
    return front, np.concatenate(columns, axis=1).astype(np.float32)


def _document_weights(rows: Rows, first: NDArray[np.int64]) -> Float32:
    """Inverse document frequencies; prompts count once each, and all rows together as much again."""
    count = len(first)
    by_prompt = np.asarray((rows.text[first] > 0).sum(axis=0)).ravel()
    by_row = np.asarray((rows.text > 0).sum(axis=0)).ravel() * (count / len(rows))
    found = by_prompt + by_row
    idf = np.log((1 + 2 * count) / (1 + found)) + 1
    return np.where(found > 0, idf, 0.0).astype(np.float32)


def _weighted(text: CsrMatrix, idf: Float32) -> CsrMatrix:
    """`graph.weighted_text` of sparse rows."""
    words = csr_matrix(text.sqrt() @ diags(idf))
    norm = np.sqrt(np.asarray(words.multiply(words).sum(axis=1)).ravel())
    return csr_matrix(diags(1 / np.maximum(norm, 1e-6)) @ words)


def _cross_fitted(words: CsrMatrix, goals: Float64, rows: Rows, ridge: float) -> Float64:
    fold = np.array([fold_of(prompt, _FOLDS, seed=17) for prompt in rows.prompts])
    values = np.zeros(goals.shape)
    for k in range(_FOLDS):
        held = fold == k
        if held.any() and not held.all():
            values[held] = words[held] @ _ridge(words[~held], goals[~held], rows.weights[~held], ridge)
    return values


def _ridge(words: CsrMatrix, goals: Float64, weights: Float64, ridge: float) -> Float64:
    """Coefficients float64[TEXT_BUCKETS, T]. Goals are centred: trees need no intercept."""
    model = Ridge(alpha=ridge, fit_intercept=False, solver="sparse_cg", tol=1e-3).fit(
        words, goals, sample_weight=weights
    )
    return np.asarray(np.atleast_2d(model.coef_).T)
