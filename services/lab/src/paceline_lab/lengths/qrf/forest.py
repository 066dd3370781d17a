"""A quantile regression forest as arrays: trees over features, and leaves that keep their training responses.

The leaves of a fitted scikit-learn forest get the weighted histogram of the responses that fall into them; the average
of the leaves a question falls into is the forest's conditional distribution (Meinshausen, JMLR 7, 2006, with every
leaf weighing the same). With right-censored responses a leaf keeps events and censored ones apart, and hazards are
taken of the averages (Kaplan-Meier).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from paceline_core.lengths import EDGES, OPEN_EDGE, K

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_UPPER = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float64)
_LOWER = np.concatenate([[0.0], EDGES[:-1]]).astype(np.float64)
SHARES = 255
"""What the shares of one leaf add up to: they are kept as bytes."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree. Node 0 is the root; a child c >= 0 is a node, c < 0 the leaf -1 - c of the forest's table."""

    feature: NDArray[np.int64]
    threshold: Float32
    """A row goes left when its feature is <= the threshold."""
    left: NDArray[np.int64]
    right: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees and the table of their leaves."""

    trees: Sequence[Tree]
    shares: NDArray[np.uint8]
    """uint8[leaves, K], rows of sum SHARES: histograms; or [leaves, 2 K] of events, then of censored responses."""

    @property
    def censored(self) -> bool:
        return bool(self.shares.shape[1] == 2 * K)


def joined(first: Forest, second: Forest) -> Forest:
    """The trees and leaves of both, in order. Raises ValueError unless both or neither keep censored responses."""
    if first.censored != second.censored:
        raise ValueError("one forest keeps censored responses, the other does not")
    moved = [
        Tree(
            tree.feature,
            tree.threshold,
            *(_leaves_moved(child, len(first.shares)) for child in (tree.left, tree.right)),
        )
        for tree in second.trees
    ]
    return Forest([*first.trees, *moved], np.concatenate([first.shares, second.shares]))


def _leaves_moved(child: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    return np.where(child < 0, child - by, child)


def spread(lengths: Float64, scale: Float64) -> Float64:
    """Histograms float64[N, K] of whole lengths [N] >= 1 times `scale` [N]: the cell (length - 1, length], scaled."""
    low, high = (lengths - 1) * scale, lengths * scale
    low, high = np.minimum(low, OPEN_EDGE - 1), np.minimum(high, OPEN_EDGE)
    overlap = np.minimum(high[:, None], _UPPER) - np.maximum(low[:, None], _LOWER)
    inside = np.maximum(overlap, 0.0)
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


def forest_of(
    estimators: Sequence[Any], rows: Float32, responses: Float64, weights: Float64 | Sequence[Float64]
) -> Forest:
    """The forest of fitted scikit-learn trees.

    rows float32[N, F]: training rows; responses float64[N, K or 2 K]: their histograms (events, then censored ones);
    weights float64[N], or one such array per tree (how often a row was drawn for it).
    """
    trees, tables, leaves = [], [], 0
    for number, estimator in enumerate(estimators):
        weight = weights if isinstance(weights, np.ndarray) else weights[number]
        grown = estimator.tree_
        is_leaf = grown.children_left < 0
        leaf_of_node = np.cumsum(is_leaf) - 1
        leaf_of_row = leaf_of_node[grown.apply(rows)]
        count = int(is_leaf.sum())
        members = csr_matrix((weight, (leaf_of_row, np.arange(len(rows)))), shape=(count, len(rows)))
        tables.append(_shares(np.asarray(members @ responses)))
        trees.append(_tree(grown, is_leaf, -1 - (leaves + leaf_of_node)))
        leaves += count
    return Forest(trees, np.concatenate(tables))


def _tree(grown: Any, is_leaf: NDArray[np.bool_], leaf: NDArray[np.int64]) -> Tree:
    """`grown`: a scikit-learn tree structure; `leaf` [nodes]: the child that stands for each node if it is a leaf."""
    inner = ~is_leaf
    if not inner.any():
        return Tree(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32), leaf[:1], leaf[:1])
    child = np.where(is_leaf, leaf, np.cumsum(inner) - 1)
    return Tree(
        feature=grown.feature[inner].astype(np.int64),
        threshold=rounded_down(grown.threshold[inner]),
        left=child[grown.children_left[inner]],
        right=child[grown.children_right[inner]],
    )


def rounded_down(thresholds: Float64) -> Float32:
    """The greatest float32 that is not greater: a float32 feature then takes the same way as before."""
    near = thresholds.astype(np.float32)
    below = np.nextafter(near, np.float32(-np.inf))
    return np.asarray(np.where(near.astype(np.float64) > thresholds, below, near), dtype=np.float32)


def _shares(table: Float64) -> NDArray[np.uint8]:
    """Rows as whole shares of SHARES, by largest remainder; an empty row (no response fell there) is uniform."""
    total = table.sum(axis=1, keepdims=True)
    exact = np.where(total > 0, table / np.where(total > 0, total, 1.0), 1 / table.shape[1]) * SHARES
    whole = np.floor(exact)
    missing = SHARES - whole.sum(axis=1).astype(np.int64)
    order = np.argsort(whole - exact, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return np.asarray(whole + (rank < missing[:, None]), dtype=np.uint8)
