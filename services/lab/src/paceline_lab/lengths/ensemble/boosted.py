"""Gradient-boosted quantiles of the log length as an ONNX graph: an expert for known apps, before a token is out.

Boosting errs in other places than forests and networks do. Every level is a target of one TreeEnsemble; the sorted
quantiles are joined by straight lines of the CDF over the log length, which are read at the bins' ends.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.sparse import csr_matrix, diags
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from paceline_core.lengths import EDGES
from paceline_lab.lengths.design import raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.graph import GraphBuilder, TextFrontEnd, fit_text, normalised, quantile_nodes
from paceline_lab.lengths.offsets import Offsets, offsets_of
from paceline_lab.lengths.qrf.forest import rounded_down
from paceline_predictor.features import APP_BUCKETS, NUMERIC, TEXT_BUCKETS

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_LOG_ENDS = np.log(EDGES[:-1] + 0.5).astype(np.float32)
_LEAST_GAP = 1e-4
_CHUNK_ROWS = 512
_LESS_OR_EQUAL, _SUM = 0, 1


@dataclass(frozen=True, slots=True)
class BoostedParams:
    """How the boosters are grown."""

    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95)
    iterations: int = 45
    learning_rate: float = 0.13
    leaves: int = 15
    least_rows: int = 20
    """Rows in a leaf."""
    components: int = 24
    """Components of the words."""
    tail: float = 1.5
    """The CDF reaches 0 and 1 so many times the distance of the outer levels beyond them."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Boosted:
    """Fitted boosters, and how features become their columns: numbers, components of the words, app tags."""

    front: TextFrontEnd
    apps: NDArray[np.int64]
    """Buckets of the app tags that training has seen."""
    boosters: Sequence[Any]
    """One for each level."""
    params: BoostedParams

    def graph(self) -> onnx.ModelProto:
        """The model as an ONNX graph, not yet described."""
        graph = GraphBuilder()
        tags = graph.node("Gather", "text", graph.integers(*self.apps.tolist()), axis=1)
        given = graph.node("Concat", "numeric", self.front.add_to(graph, "text"), tags, axis=1)
        masses = _between(graph, _ensemble(graph, self.boosters, given), self.params)
        return graph.model(
            masses,
            quantile_nodes(graph, masses),
            TEXT_BUCKETS,
            len(NUMERIC),
            doc=f"{len(self.boosters)} boosted quantiles of the log length, joined by lines",
        )


def fit(examples: Sequence[Example], offsets: Offsets, params: BoostedParams) -> Boosted:
    """From the whole answers among the examples. Deterministic. Raises ValueError without any.

    Limits and temperatures are blanked: in the training sets they say which set it is. The app's name is not, so this
    expert is for apps that training has seen; the others know questions of all apps. Cut answers count as if they had
    ended there.
    """
    rows = [example for example in examples if not example.question.generated_tokens]
    if not rows:
        raise ValueError("no examples to learn from")
    plain = [dataclasses.replace(e.question, max_tokens=0, temperature=0.0) for e in rows]
    raw = raw_features(plain)
    tags = np.asarray(raw.text[:, APP_BUCKETS].toarray(), dtype=np.float32)
    named = np.array([bool(question.app) for question in plain])
    seen = np.flatnonzero(tags[named].any(axis=0))
    words = raw.text @ diags(np.r_[np.ones(APP_BUCKETS.start), np.zeros(TEXT_BUCKETS - APP_BUCKETS.start)])
    words = csr_matrix(words, dtype=np.float32)
    once = np.unique([example.prompt_id for example in rows], return_index=True)[1]
    front = fit_text(words[once].toarray(), params.components, params.seed)
    chunks = range(0, words.shape[0], _CHUNK_ROWS)
    components = [front.transform(words[at : at + _CHUNK_ROWS].toarray()) for at in chunks]
    table = np.concatenate([raw.numeric, np.concatenate(components), tags[:, seen]], axis=1)
    logs = np.log([max(1, example.output_tokens) for example in rows]) - offsets_of(offsets, plain)
    weight = np.array([example.weight for example in rows])
    boosters = [_booster(level, table, logs, weight, params) for level in params.levels]
    return Boosted(front, APP_BUCKETS.start + seen, boosters, params)


def _booster(level: float, table: Float32, logs: Float64, weight: Float64, params: BoostedParams) -> Any:
    with threadpool_limits(1):  # its threads only get in each other's way where others work too
        return HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            max_iter=params.iterations,
            learning_rate=params.learning_rate,
            max_leaf_nodes=params.leaves,
            min_samples_leaf=params.least_rows,
            random_state=params.seed,
        ).fit(table, logs, sample_weight=weight)


def _ensemble(graph: GraphBuilder, boosters: Sequence[Any], rows: str) -> str:
    """Quantiles [N, levels] of the log length."""
    roots: list[int] = []
    features: list[int] = []
    splits: list[Float32] = []
    children: tuple[list[int], list[int]] = ([], [])
    is_leaf: tuple[list[int], list[int]] = ([], [])
    targets: list[int] = []
    values: list[float] = []
    for target, booster in enumerate(boosters):
        for (predictor,) in booster._predictors:
            nodes = predictor.nodes
            leaf = nodes["is_leaf"].astype(bool)
            if leaf[0]:  # a constant tree: a split whose sides are the same leaf
                nodes, leaf = np.concatenate([nodes, nodes]), np.array([False, True])
                nodes["left"][0] = nodes["right"][0] = 1
                nodes["feature_idx"][0], nodes["num_threshold"][0] = 0, 0.0
            inner = ~leaf
            node_number = len(features) + np.cumsum(inner) - 1
            leaf_number = len(values) + np.cumsum(leaf) - 1
            roots.append(len(features))
            for side, name in enumerate(("left", "right")):
                child = nodes[name][inner].astype(np.int64)
                children[side].extend(np.where(leaf[child], leaf_number[child], node_number[child]).tolist())
                is_leaf[side].extend(leaf[child].astype(np.int64).tolist())
            features.extend(nodes["feature_idx"][inner].astype(np.int64).tolist())
            splits.append(rounded_down(np.clip(nodes["num_threshold"][inner], -3e38, 3e38)))
            values.extend(nodes["value"][leaf].tolist())
            targets.extend([target] * int(leaf.sum()))
    moves = graph.node(
        "TreeEnsemble",
        rows,
        domain="ai.onnx.ml",
        aggregate_function=_SUM,
        n_targets=len(boosters),
        tree_roots=roots,
        nodes_featureids=features,
        nodes_splits=numpy_helper.from_array(np.concatenate(splits), "splits"),
        nodes_modes=numpy_helper.from_array(np.full(len(features), _LESS_OR_EQUAL, dtype=np.uint8), "modes"),
        nodes_truenodeids=children[0],
        nodes_trueleafs=is_leaf[0],
        nodes_falsenodeids=children[1],
        nodes_falseleafs=is_leaf[1],
        leaf_targetids=targets,
        leaf_weights=numpy_helper.from_array(np.asarray(values, dtype=np.float32), "leaf_values"),
    )
    starts = np.array([[np.ravel(booster._baseline_prediction)[0] for booster in boosters]], np.float32)
    return graph.node("Add", moves, graph.constant("starts", starts))


def _between(graph: GraphBuilder, quantiles: str, params: BoostedParams) -> str:
    """Bin masses [N, K] of quantiles [N, levels] of the log length, in any order."""
    count = len(params.levels)
    ordered = f"sorted_{len(graph.nodes)}"
    graph.nodes.append(
        onnx.helper.make_node(
            "TopK",
            [quantiles, graph.integers(count)],
            [ordered, f"{ordered}_at"],
            axis=1,
            largest=0,
        )
    )
    # Outer points, by a matrix: first - tail * (second - first), last + tail * (last - last but one).
    points = np.zeros((count, count + 2), np.float32)
    points[:, 1:-1] = np.eye(count)
    points[0, 0], points[1, 0] = 1 + params.tail, -params.tail
    points[-1, -1], points[-2, -1] = 1 + params.tail, -params.tail
    low = graph.node("MatMul", ordered, graph.constant("low_points", points[:, :-1]))
    gap = graph.node("MatMul", ordered, graph.constant("gaps", np.diff(points, axis=1)))
    gap = graph.node("Max", gap, graph.scalar(_LEAST_GAP))
    beyond = graph.node(
        "Sub",
        graph.constant("log_ends", _LOG_ENDS[None, :, None]),
        graph.node("Unsqueeze", low, graph.integers(1)),
    )
    share = graph.node("Div", beyond, graph.node("Unsqueeze", gap, graph.integers(1)))
    inside = graph.node("Clip", share, graph.scalar(0.0), graph.scalar(1.0))
    rises = np.diff(np.concatenate([[0.0], params.levels, [1.0]])).astype(np.float32)
    below = graph.node("MatMul", inside, graph.constant("rises", rises))
    # Masses are what the CDF rises by from end to end; the last one ends at 1.
    ends = len(_LOG_ENDS)
    steps = np.eye(ends, ends + 1, dtype=np.float32) - np.eye(ends, ends + 1, 1, dtype=np.float32)
    last = np.zeros(ends + 1, np.float32)
    last[-1] = 1.0
    masses = graph.node("Gemm", below, graph.constant("steps", steps), graph.constant("certain", last))
    return normalised(graph, graph.node("Max", masses, graph.scalar(0.0)))
