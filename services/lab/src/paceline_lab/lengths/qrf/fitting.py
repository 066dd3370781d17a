"""Fitting: words to a few components, trees that split on whole distributions, one ONNX graph."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

from paceline_core.lengths import EDGES, OPEN_EDGE, K
from paceline_lab.lengths.graph import GraphBuilder, normalised, quantile_nodes
from paceline_lab.lengths.qrf.export import either_forest_nodes, forest_nodes
from paceline_lab.lengths.qrf.forest import Float32, Float64, Forest, forest_of
from paceline_lab.lengths.qrf.inputs import Rows, imputed, kaplan_meier
from paceline_lab.lengths.qrf.wording import fit_words
from paceline_predictor.features import NUMERIC

_UPPER = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float64)
_LOG_MIDDLE = np.log((np.concatenate([[0.0], EDGES[:-1]]) + 1 + _UPPER) / 2)


@dataclass(frozen=True, slots=True)
class QrfParams:
    """How a forest is grown. The defaults were chosen on two folds of prompts of the permissive sets."""

    trees: int = 50
    leaf_weight: float = 5.0
    """Least weight of the training rows in a leaf; the rows of a prompt weigh one or two together."""
    progress_trees: int = 30
    """Trees for answers in progress: a forest of their own, grown where training rows have such questions."""
    progress_leaf_weight: float = 2.0
    depth: int = 30
    features_share: float = 0.6
    """Share of the features that each split tries."""
    random_thresholds: bool = True
    """Extremely randomised trees, on all rows; otherwise best thresholds, on bootstrap samples."""
    components: int = 32
    """Components of the words that are found without looking at lengths."""
    supervised: bool = True
    """Further components: what ridge regressions on the words say of the length and the kind of task."""
    ridge: float = 1.0
    levels: int = 4
    """Splits lessen the squared error of the CDF at so many lengths (and of the log length); 0: of that alone."""
    smoothing_bins: float = 0.5
    """Standard deviation of the kernel that spreads masses over neighbouring bins."""
    prior_share: float = 0.005
    """Share of the distribution of all training rows in every answer."""
    sharpening: float = 1.2
    """Exponent of the masses: leaves hold the answers to questions that are not quite alike, and are too wide."""
    seed: int = 0


def fit_graph(rows: Rows, params: QrfParams) -> onnx.ModelProto:
    """Forests of training rows as one graph without metadata: one for arrivals, one for answers in progress."""
    targets = split_targets(imputed(rows.responses, rows.weights), rows.weights, params.levels)
    front, components = fit_words(
        rows, targets, params.components, params.supervised, params.ridge, params.seed
    )
    table = np.concatenate([components, rows.numeric], axis=1)
    graph = GraphBuilder()
    given = (
        "numeric" if front is None else graph.node("Concat", front.add_to(graph, "text"), "numeric", axis=1)
    )
    arrivals, progress = np.flatnonzero(rows.arrivals), np.flatnonzero(~rows.arrivals)
    if not len(arrivals) or not len(progress):
        forest, mixing = _grown(rows, table, targets, np.arange(len(rows)), params)
        masses = forest_nodes(graph, forest, given, mixing)
    else:
        asked_again = dataclasses.replace(
            params, trees=params.progress_trees, leaf_weight=params.progress_leaf_weight
        )
        forest, mixing = _grown(rows, table, targets, arrivals, params)
        later_forest, later_mixing = _grown(rows, table, targets, progress, asked_again)
        has_output = graph.node("Gather", "numeric", graph.integers(NUMERIC.index("has_output")), axis=1)
        is_later = graph.node("Greater", has_output, graph.scalar(0.5))
        masses = either_forest_nodes(graph, (forest, later_forest), given, (mixing, later_mixing), is_later)
    if params.sharpening != 1:
        masses = graph.node("Pow", masses, graph.scalar(params.sharpening))
    masses = normalised(graph, masses)
    return graph.model(masses, quantile_nodes(graph, masses), rows.text.shape[1], rows.numeric.shape[1])


def _grown(
    rows: Rows, table: Float32, targets: Float64, chosen: NDArray[np.int64], params: QrfParams
) -> tuple[Forest, Float64]:
    """A forest grown on the chosen rows, and what its masses are multiplied by."""
    weights, responses = rows.weights[chosen], rows.responses[chosen]
    kind = ExtraTreesRegressor if params.random_thresholds else RandomForestRegressor
    goals = targets[chosen] if targets.shape[1] > 1 else targets[chosen, 0]
    fitted = kind(
        params.trees,
        max_depth=params.depth,
        max_features=params.features_share,
        min_weight_fraction_leaf=min(0.5, params.leaf_weight / weights.sum()),
        random_state=params.seed,
    ).fit(table[chosen], goals, sample_weight=weights)
    cut = rows.responses[:, K:].any()
    forest = forest_of(fitted.estimators_, table[chosen], responses if cut else responses[:, :K], weights)
    marginal = kaplan_meier(weights @ responses[:, :K], weights @ responses[:, K:])
    return forest, mixing_matrix(params.smoothing_bins, params.prior_share, marginal)


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


def mixing_matrix(smoothing_bins: float, prior_share: float, marginal: Float64) -> Float64:
    """What a forest's masses are multiplied by, float64[K, K], rows of sum 1: a kernel over bins, then the prior."""
    steps = np.arange(K)[:, None] - np.arange(K)[None, :]
    kernel = np.exp(-0.5 * (steps / max(smoothing_bins, 1e-3)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.asarray((1 - prior_share) * kernel + prior_share * marginal[None, :])
