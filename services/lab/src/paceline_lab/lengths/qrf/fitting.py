"""Fitting: words to a few components, trees that split on whole distributions, one ONNX graph."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge

from paceline_core.lengths import EDGES, OPEN_EDGE, K
from paceline_lab.lengths.graph import GraphBuilder, TextFrontEnd, normalised, quantile_nodes
from paceline_lab.lengths.qrf.export import forest_nodes
from paceline_lab.lengths.qrf.forest import Float32, Float64, forest_of
from paceline_lab.lengths.qrf.inputs import Rows, imputed, kaplan_meier
from paceline_lab.lengths.splits import fold_of

_UPPER = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float64)
_LOG_MIDDLE = np.log((np.concatenate([[0.0], EDGES[:-1]]) + 1 + _UPPER) / 2)


@dataclass(frozen=True, slots=True)
class QrfParams:
    """How a forest is grown."""

    trees: int = 40
    leaf_weight: float = 2.5
    """Least weight of the training rows in a leaf; a prompt's rows weigh about one together."""
    depth: int = 30
    features_share: float = 0.6
    """Share of the features that each split tries."""
    random_thresholds: bool = True
    """Extremely randomised trees, on all rows; otherwise best thresholds, on bootstrap samples."""
    components: int = 32
    """Components of the words that are found without looking at lengths."""
    supervised: bool = True
    """Further components: what a ridge regression on the words says of the length (cross-fitted in training)."""
    ridge: float = 2.0
    levels: int = 4
    """Splits lessen the squared error of the CDF at so many lengths (and of the log length); 0: of that alone."""
    smoothing_bins: float = 0.5
    """Standard deviation of the kernel that spreads masses over neighbouring bins."""
    prior_share: float = 0.005
    """Share of the distribution of all training rows in every answer."""
    seed: int = 0


def fit_graph(rows: Rows, params: QrfParams) -> onnx.ModelProto:
    """The forest of training rows as a graph without metadata."""
    goals = imputed(rows.responses, rows.weights)
    targets = split_targets(goals, rows.weights, params.levels)
    front, components = fit_words(rows, targets, params)
    table = np.concatenate([components, rows.numeric], axis=1)
    kind = ExtraTreesRegressor if params.random_thresholds else RandomForestRegressor
    fitted = kind(
        params.trees,
        max_depth=params.depth,
        max_features=params.features_share,
        min_weight_fraction_leaf=min(0.5, params.leaf_weight / rows.weights.sum()),
        random_state=params.seed,
    ).fit(table, targets, sample_weight=rows.weights)
    cut = rows.responses[:, K:].any()
    responses = rows.responses if cut else rows.responses[:, :K]
    forest = forest_of(fitted.estimators_, table, responses, rows.weights)
    marginal = kaplan_meier(rows.weights @ rows.responses[:, :K], rows.weights @ rows.responses[:, K:])

    graph = GraphBuilder()
    words = [front.add_to(graph, "text")] if front is not None else []
    given = graph.node("Concat", *words, "numeric", axis=1) if words else "numeric"
    mixing = mixing_matrix(params.smoothing_bins, params.prior_share, marginal)
    masses = normalised(graph, forest_nodes(graph, forest, given, mixing))
    return graph.model(masses, quantile_nodes(graph, masses), rows.text.shape[1], rows.numeric.shape[1])


def split_targets(goals: Float64, weights: Float64, levels: int) -> Float64:
    """What splits make alike: the log length, and the CDF at `levels` lengths; float64[N, 1 + levels].

    Each CDF column is scaled so that its squared error is its part of the CRPS; the log length weighs a quarter.
    """
    logs = goals @ _LOG_MIDDLE
    if not levels:
        return np.asarray(logs[:, None])
    pooled = np.cumsum(weights @ goals) / weights.sum()
    edges = np.unique(np.searchsorted(pooled, (np.arange(levels) + 0.5) / levels))
    edges = edges[edges < K - 1]
    at = np.log(_UPPER[edges])
    width = np.gradient(at) if len(at) > 1 else np.ones(len(at))
    columns = np.cumsum(goals, axis=1)[:, edges] * np.sqrt(width)
    return np.concatenate([0.25 * logs[:, None], columns], axis=1)


def fit_words(rows: Rows, targets: Float64, params: QrfParams) -> tuple[TextFrontEnd | None, Float32]:
    """The text front end of the graph, and the components of the training rows, float32[N, C].

    Supervised components of a training row come from a fit that has not seen its prompt; those of the graph from all.
    """
    if not params.components and not params.supervised:
        return None, np.zeros((len(rows.weights), 0), dtype=np.float32)
    first = np.flatnonzero(rows.arrivals) if rows.arrivals.any() else np.arange(len(rows.weights))
    first = first[np.unique(rows.prompts[first], return_index=True)[1]]
    found = np.asarray((rows.text[first] > 0).sum(axis=0)).ravel() + np.asarray(
        (rows.text > 0).sum(axis=0)
    ).ravel() / max(1.0, len(rows.weights) / len(first))
    idf = np.where(found > 0, np.log((1 + 2 * len(first)) / (1 + found)) + 1, 0.0).astype(np.float32)
    words = weighted(rows.text, idf)
    projections, columns = [], []
    if params.components:
        rank = max(1, min(params.components, len(first) - 1))
        svd = TruncatedSVD(rank, n_iter=5, random_state=params.seed).fit(words[first])
        projections.append(svd.components_.T)
        columns.append(words @ svd.components_.T)
    if params.supervised:
        projection, column = _supervised(words, targets, rows, params.ridge)
        projections.append(projection)
        columns.append(column)
    front = TextFrontEnd(idf, np.concatenate(projections, axis=1).astype(np.float32))
    return front, np.concatenate(columns, axis=1).astype(np.float32)


def weighted(text: csr_matrix, idf: Float32) -> csr_matrix:
    """`graph.weighted_text` of sparse rows."""
    words = csr_matrix(text.sqrt() @ diags(idf))
    norm = np.sqrt(np.asarray(words.multiply(words).sum(axis=1)).ravel())
    return csr_matrix(diags(1 / np.maximum(norm, 1e-6)) @ words)


def mixing_matrix(smoothing_bins: float, prior_share: float, marginal: Float64) -> Float64:
    """What a forest's masses are multiplied by, float64[K, K], rows of sum 1: a kernel over bins, then the prior."""
    steps = np.arange(K)[:, None] - np.arange(K)[None, :]
    kernel = np.exp(-0.5 * (steps / max(smoothing_bins, 1e-3)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.asarray((1 - prior_share) * kernel + prior_share * marginal[None, :])


_FOLDS = 5


def _supervised(
    words: csr_matrix, targets: Float64, rows: Rows, ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A projection [TEXT_BUCKETS, 1] of words onto the log length, and its cross-fitted values [N, 1]."""
    goal = targets[:, 0]
    fold = np.array([fold_of(prompt, _FOLDS, seed=17) for prompt in rows.prompts])
    column = np.zeros(len(goal))
    for k in range(_FOLDS):
        held = fold == k
        if held.any() and not held.all():
            column[held] = words[held] @ _ridge(words[~held], goal[~held], rows.weights[~held], ridge)
    return _ridge(words, goal, rows.weights, ridge)[:, None], column[:, None]


def _ridge(words: csr_matrix, goal: Float64, weights: Float64, ridge: float) -> NDArray[np.float64]:
    model = Ridge(alpha=ridge, solver="sparse_cg", tol=1e-3).fit(words, goal, sample_weight=weights)
    return np.asarray(model.coef_)
