"""A forest as ONNX nodes: one TreeEnsemble finds a leaf per tree, one Gather their histograms, the average follows.

Every tree is a target of its own whose value is the number of the leaf. So a leaf costs K bytes in a table, where
weights of the ensemble itself would cost some 13 bytes for each bin that is not empty.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from paceline_core.lengths import K
from paceline_lab.lengths.graph import GraphBuilder
from paceline_lab.lengths.qrf.forest import SHARES, Float64, Forest, joined

_LESS_OR_EQUAL = 0
_SUM = 1
_LARGEST_EXACT_INDEX = 1 << 24
_LEAST_RISK = 1e-12


def forest_nodes(graph: GraphBuilder, forest: Forest, rows: str, smoothing: Float64 | None = None) -> str:
    """Bin masses [N, K] (rows of sum about 1) for features [N, F].

    smoothing float64[K, K]: spreads the mass of each bin (row) over bins, rows of sum 1.
    """
    leaf = graph.node("Cast", _leaves(graph, forest, rows), to=TensorProto.INT32)
    shares = graph.node("Gather", graph.constant(f"leaf_shares_{leaf}", forest.shares), leaf)
    total = graph.node(
        "ReduceSum", graph.node("Cast", shares, to=TensorProto.FLOAT), graph.integers(1), keepdims=0
    )
    masses = graph.node("Mul", total, graph.scalar(1.0 / (SHARES * len(forest.trees))))
    if forest.censored:
        masses = kaplan_meier(graph, masses)
    if smoothing is not None:
        masses = graph.node(
            "MatMul", masses, graph.constant(f"smoothing_{leaf}", smoothing.astype(np.float32))
        )
    return masses


def either_forest_nodes(
    graph: GraphBuilder, forests: Sequence[Forest], rows: str, smoothings: Sequence[Float64], is_second: str
) -> str:
    """What `forest_nodes` of the first forest says, or of the second where `is_second` bool[N, 1]; bin masses [N, K].

    One ensemble finds the leaves of both, and all that follows is done once, for the forest that answers.
    """
    both = joined(*forests)
    leaf = graph.node("Cast", _leaves(graph, both, rows), to=TensorProto.INT32)
    shares = graph.node("Gather", graph.constant("leaf_shares", both.shares), leaf)
    counts = [len(forest.trees) for forest in forests]
    first, second = (
        graph.constant(
            f"tree_shares_{number}",
            (np.repeat([0, 1], counts) == number)[None, None, :].astype(np.float32) / (SHARES * count),
        )
        for number, count in enumerate(counts)
    )
    answering = graph.node("Where", graph.node("Unsqueeze", is_second, graph.integers(1)), second, first)
    total = graph.node("MatMul", answering, graph.node("Cast", shares, to=TensorProto.FLOAT))
    masses = graph.node("Reshape", total, graph.integers(-1, both.shares.shape[1]))
    if both.censored:
        masses = kaplan_meier(graph, masses)
    smoothing = graph.constant("smoothings", np.concatenate(smoothings, axis=1).astype(np.float32))
    smooth = graph.node("MatMul", masses, smoothing)
    halves = [f"{smooth}_{number}" for number in range(2)]
    graph.nodes.append(helper.make_node("Split", [smooth], halves, axis=1, num_outputs=2))
    return graph.node("Where", is_second, halves[1], halves[0])


def kaplan_meier(graph: GraphBuilder, table: str) -> str:
    """Bin masses [N, K] from events and censored responses [N, 2 K]; what survives all bins ends in the last one.

    A censored response was at risk in the bins before its own: of its own bin it says nothing.
    """
    earlier = np.triu(np.ones((K, K), dtype=np.float32), 1)
    events_of, at_risk_of = np.eye(2 * K, K, dtype=np.float32), np.vstack([1 - earlier, earlier.T])
    # A little more of both, so that nobody at risk is no hazard, but of the last bin it is 1.
    least = np.full(2 * K, _LEAST_RISK, dtype=np.float32)
    least[: K - 1] = 0.0
    both = graph.node(
        "Gemm",
        table,
        graph.constant("events_and_risk", np.hstack([events_of, at_risk_of])),
        graph.constant("least_risk", least),
    )
    events, at_risk = f"{both}_events", f"{both}_risk"
    graph.nodes.append(helper.make_node("Split", [both], [events, at_risk], axis=1, num_outputs=2))
    hazard = graph.node("Div", events, at_risk)
    # Survival as a running product: the exponential of a running sum of logarithms.
    survives = graph.node("Max", graph.node("Sub", graph.scalar(1.0), hazard), graph.scalar(1e-30))
    logs = graph.node("MatMul", graph.node("Log", survives), graph.constant("earlier", earlier))
    return graph.node("Mul", hazard, graph.node("Exp", logs))


def _leaves(graph: GraphBuilder, forest: Forest, rows: str) -> str:
    """The leaf of each tree as float32[N, trees]: exact, for a table this short."""
    if len(forest.shares) >= _LARGEST_EXACT_INDEX:
        raise ValueError(f"{len(forest.shares)} leaves: more than float32 can number")
    targets: list[int] = []
    leaves: list[int] = []
    roots: list[int] = []
    children: tuple[list[int], list[int]] = ([], [])
    is_leaf: tuple[list[int], list[int]] = ([], [])
    offset = 0
    for number, tree in enumerate(forest.trees):
        roots.append(offset)
        for side, child in enumerate((tree.left, tree.right)):
            ends = child < 0
            at = child + offset
            at[ends] = len(leaves) + np.arange(int(ends.sum()))
            children[side].extend(at.tolist())
            is_leaf[side].extend(ends.astype(np.int64).tolist())
            leaves.extend((-1 - child[ends]).tolist())
            targets.extend([number] * int(ends.sum()))
        offset += len(tree.feature)
    return graph.node(
        "TreeEnsemble",
        rows,
        domain="ai.onnx.ml",
        aggregate_function=_SUM,
        n_targets=len(forest.trees),
        tree_roots=roots,
        nodes_featureids=np.concatenate([tree.feature for tree in forest.trees]).tolist(),
        nodes_splits=numpy_helper.from_array(
            np.concatenate([tree.threshold for tree in forest.trees]), "splits"
        ),
        nodes_modes=numpy_helper.from_array(np.full(offset, _LESS_OR_EQUAL, dtype=np.uint8), "modes"),
        nodes_truenodeids=children[0],
        nodes_trueleafs=is_leaf[0],
        nodes_falsenodeids=children[1],
        nodes_falseleafs=is_leaf[1],
        leaf_targetids=targets,
        leaf_weights=numpy_helper.from_array(np.asarray(leaves, dtype=np.float32), "leaf_numbers"),
    )
