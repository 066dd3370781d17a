"""A fitted mixture of experts: from features to bin masses, in numpy and as an ONNX graph that does the same.

In the graph all member networks lie side by side: their weights are put into block matrices, so that averaging more
networks adds no nodes. Only the projections and the hidden layers of a member feed its own gate and experts.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.sparse import csr_matrix, diags

from paceline_core.lengths import K
from paceline_lab.lengths.design import CsrMatrix
from paceline_lab.lengths.graph import (
    Float32,
    GraphBuilder,
    TextFrontEnd,
    quantile_nodes,
)
from paceline_lab.lengths.moe.bins import Array, smooth_basis
from paceline_lab.lengths.moe.network import Rows, Weights, forward

_NUMERIC_LIMIT = 4.0
_LEAST_SCALE = 1e-3
_LEAST_NORM = 1e-6


@dataclass(frozen=True, slots=True)
class Inputs:
    """How features become the networks' inputs."""

    idf: Float32
    """float32[TEXT_BUCKETS]; 0 for a bucket never seen in training."""
    centre: Float32
    """float32[F]"""
    scale: Float32
    """float32[F]: 0 for a number that never varied in training, and then says nothing."""

    def rows(self, text: CsrMatrix, numeric: Float32) -> Rows:
        """Rows as `graph.weighted_text` and standardised numbers within +-4, from raw features [N, ...]."""
        words = csr_matrix(text.sqrt() @ diags(self.idf))
        norm = np.sqrt(np.asarray(words.multiply(words).sum(axis=1)).ravel())
        standard = (numeric - self.centre) * self.scale
        return Rows(
            csr_matrix(diags(1 / np.maximum(norm, _LEAST_NORM)) @ words, dtype=np.float32),
            np.clip(standard, -_NUMERIC_LIMIT, _NUMERIC_LIMIT).astype(np.float32),
        )


def fit_inputs(
    text: CsrMatrix, numeric: Float32, weights: NDArray[np.float64], documents: NDArray[np.float64]
) -> Inputs:
    """From training features [N, ...], row weights [N] for the numbers, and how much of a document each row is [N]."""
    share = weights / weights.sum()
    centre = share @ numeric
    spread = np.sqrt(share @ (numeric - centre) ** 2)
    scale = np.where(spread > _LEAST_SCALE, 1 / np.maximum(spread, _LEAST_SCALE), 0.0)
    found = np.asarray(documents @ (text > 0)).ravel()
    idf = np.where(found > 0, np.log((1 + documents.sum()) / (1 + found)) + 1, 0.0)
    return Inputs(idf.astype(np.float32), centre.astype(np.float32), scale.astype(np.float32))


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Networks that were fitted with different seeds and held-out prompts; the answer is their average."""

    inputs: Inputs
    families: tuple[str, ...]
    """Task families, in the order of the gates' outputs."""
    members: tuple[Weights, ...]

    @property
    def basis(self) -> Array:
        """The smooth moves of the experts, float32[B, K]."""
        size = self.members[0].experts.shape[1] // len(self.families)
        return smooth_basis(size).astype(np.float32)

    def masses(self, text: Float32, numeric: Float32) -> Float32:
        """Bin masses float32[N, K] of features [N, ...]."""
        rows = self.inputs.rows(csr_matrix(text), numeric)
        passes = [forward(member, self.basis, rows).masses for member in self.members]
        return np.asarray(np.mean(passes, axis=0), dtype=np.float32)

    def gate(self, text: Float32, numeric: Float32) -> Float32:
        """Share of each family, float32[N, M]."""
        rows = self.inputs.rows(csr_matrix(text), numeric)
        return np.asarray(np.mean([forward(m, self.basis, rows).gate for m in self.members], axis=0))

    def graph(self) -> onnx.ModelProto:
        """The model as an ONNX graph, not yet described."""
        graph = GraphBuilder()
        masses = self.add_to(graph)
        return graph.model(
            masses,
            quantile_nodes(graph, masses),
            len(self.inputs.idf),
            len(self.inputs.centre),
            doc="hashed words and numbers -> gate over task families -> experts -> one distribution",
        )

    def add_to(self, graph: GraphBuilder) -> str:
        """The nodes from `text` and `numeric` to the masses [N, K]; gives back the name of the masses."""
        stacked = _side_by_side(self.members, len(self.inputs.centre))
        words = TextFrontEnd(self.inputs.idf, stacked.projection).add_to(graph, "text")
        numbers = self._add_numbers(graph)
        inputs = graph.node("Concat", words, numbers, axis=1)
        hidden = graph.node(
            "Gemm", inputs, *_named(graph, hidden=stacked.hidden, hidden_bias=stacked.hidden_bias)
        )
        features = graph.node("Concat", inputs, graph.node("Tanh", hidden), axis=1)
        members, families, size = len(self.members), len(self.families), len(self.basis)
        gate = graph.node("Gemm", features, *_named(graph, gate=stacked.gate, gate_bias=stacked.gate_bias))
        by_member = graph.node("Reshape", gate, graph.integers(-1, members, families))
        shares = graph.node("Softmax", by_member, axis=2)
        flat = graph.node("Reshape", shares, graph.integers(-1, 1, members * families))
        moves = graph.node("MatMul", features, *_named(graph, experts=stacked.experts))
        by_expert = graph.node("Reshape", moves, graph.integers(-1, members * families, size))
        bent = graph.node("MatMul", by_expert, *_named(graph, basis=self.basis))
        logits = graph.node("Add", bent, *_named(graph, profiles=stacked.profiles))
        mixed = graph.node("MatMul", flat, graph.node("Softmax", logits, axis=2))
        total = graph.node("Reshape", mixed, graph.integers(-1, K))
        return graph.node("Mul", total, graph.scalar(1 / members))

    def _add_numbers(self, graph: GraphBuilder) -> str:
        centre, scale = _named(graph, centre=self.inputs.centre[None, :], scale=self.inputs.scale[None, :])
        standard = graph.node("Mul", graph.node("Sub", "numeric", centre), scale)
        return graph.node("Clip", standard, graph.scalar(-_NUMERIC_LIMIT), graph.scalar(_NUMERIC_LIMIT))


def _named(graph: GraphBuilder, **arrays: Array) -> list[str]:
    return [graph.constant(name, array.astype(np.float32)) for name, array in arrays.items()]


def _side_by_side(members: tuple[Weights, ...], numbers: int) -> Weights:
    """One set of weights on [all members' words, numbers, all members' hidden], whose members do not meet."""
    words = [m.projection.shape[1] for m in members]
    return Weights(
        projection=np.hstack([m.projection for m in members]),
        hidden=_blocks([m.hidden for m in members], words, numbers),
        hidden_bias=np.concatenate([m.hidden_bias for m in members]),
        gate=_blocks([m.gate for m in members], words, numbers),
        gate_bias=np.concatenate([m.gate_bias for m in members]),
        experts=_blocks([m.experts for m in members], words, numbers),
        profiles=np.vstack([m.profiles for m in members]),
    )


def _blocks(matrices: list[Array], words: list[int], numbers: int) -> Array:
    """Matrices with rows [own words, numbers, own hidden] as one: words and hidden block-diagonal, numbers shared."""
    from_words = [m[:w] for m, w in zip(matrices, words, strict=True)]
    from_numbers = [m[w : w + numbers] for m, w in zip(matrices, words, strict=True)]
    from_hidden = [m[w + numbers :] for m, w in zip(matrices, words, strict=True)]
    parts = [block_diag(*from_words), np.hstack(from_numbers)]
    if len(from_hidden[0]):
        parts.append(block_diag(*from_hidden))
    return np.asarray(np.vstack(parts), dtype=np.float32)
