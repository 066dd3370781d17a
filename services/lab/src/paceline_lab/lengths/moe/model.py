"""A fitted mixture of experts: from features to bin masses, in numpy and as an ONNX graph that does the same.

In the graph all member networks lie side by side: their weights are put into block matrices, so that averaging more
networks adds no nodes. A member's hidden layer feeds its own gate and experts only.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.sparse import csr_matrix, diags

from paceline_core.lengths import K
from paceline_lab.lengths.design import CsrMatrix, RawFeatures
from paceline_lab.lengths.graph import (
    Float32,
    GraphBuilder,
    TextFrontEnd,
    quantile_nodes,
)
from paceline_lab.lengths.moe.bins import Array, smooth_basis
from paceline_lab.lengths.moe.network import Weights, forward
from paceline_lab.lengths.moe.training import MoeParams
from paceline_lab.lengths.moe.words import fit_components

_NUMERIC_LIMIT = 4.0
_LEAST_SCALE = 1e-3
_LEAST_NORM = 1e-6


@dataclass(frozen=True, slots=True)
class Inputs:
    """How features become the networks' inputs."""

    front: TextFrontEnd
    centre: Float32
    """float32[F]"""
    scale: Float32
    """float32[F]: 0 for a number that never varied in training, and then says nothing."""

    @property
    def words(self) -> int:
        """How many inputs are components of the words; they come first."""
        return self.front.components

    def rows(self, text: Float32, numeric: Float32) -> Float32:
        """Inputs float32[N, D] from raw features [N, ...]."""
        return np.asarray(np.hstack([self.front.transform(text), self.numbers(numeric)]))

    def numbers(self, numeric: Float32) -> Float32:
        """Standardised numbers within +-4, float32[N, F]."""
        standard = (numeric - self.centre) * self.scale
        return np.asarray(np.clip(standard, -_NUMERIC_LIMIT, _NUMERIC_LIMIT), dtype=np.float32)


def fit_inputs(
    raw: RawFeatures,
    goals: NDArray[np.float64],
    weights: NDArray[np.float64],
    documents: NDArray[np.float64],
    fold: NDArray[np.int64],
    params: MoeParams,
    seed: int,
) -> tuple[Inputs, Float32]:
    """From N training rows: the inputs' making, and the training rows' own inputs float32[N, D].

    goals float64[N, G]: numbers that words should tell, for a component each;
    weights float64[N]: of the rows; documents float64[N]: how much of a document each is; fold int64[N]: of its prompt.
    """
    share = weights / weights.sum()
    centre = share @ raw.numeric
    spread = np.sqrt(share @ (raw.numeric - centre) ** 2)
    scale = np.where(spread > _LEAST_SCALE, 1 / np.maximum(spread, _LEAST_SCALE), 0.0)
    found = np.asarray(documents @ (raw.text > 0)).ravel()
    # What every row has (the bucket of an app without a name) tells nothing, and its absence must tell nothing either.
    told = (found > 0) & (found < documents.sum() * (1 - 1e-9))
    idf = np.where(told, np.log((1 + documents.sum()) / (1 + found)) + 1, 0.0).astype(np.float32)
    words = fit_components(
        _weighted(raw.text, idf),
        documents,
        goals,
        weights,
        fold,
        params.components,
        params.ridge,
        seed,
    )
    front = TextFrontEnd(idf, words.projection)
    inputs = Inputs(front, centre.astype(np.float32), scale.astype(np.float32))
    return inputs, np.hstack([words.values, inputs.numbers(raw.numeric)])


def _weighted(text: CsrMatrix, idf: Float32) -> CsrMatrix:
    """`graph.weighted_text` of sparse rows."""
    words = csr_matrix(text.sqrt() @ diags(idf))
    norm = np.sqrt(np.asarray(words.multiply(words).sum(axis=1)).ravel())
    return csr_matrix(diags(1 / np.maximum(norm, _LEAST_NORM)) @ words)


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
        rows = self.inputs.rows(text, numeric)
        passes = [forward(member, self.basis, rows).masses for member in self.members]
        return np.asarray(np.mean(passes, axis=0), dtype=np.float32)

    def gate(self, text: Float32, numeric: Float32) -> Float32:
        """Share of each family, float32[N, M]."""
        rows = self.inputs.rows(text, numeric)
        return np.asarray(np.mean([forward(m, self.basis, rows).gate for m in self.members], axis=0))

    def graph(self) -> onnx.ModelProto:
        """The model as an ONNX graph, not yet described."""
        graph = GraphBuilder()
        masses = self.add_to(graph)
        return graph.model(
            masses,
            quantile_nodes(graph, masses),
            len(self.inputs.front.idf),
            len(self.inputs.centre),
            doc="hashed words and numbers -> gate over task families -> experts -> one distribution",
        )

    def add_to(self, graph: GraphBuilder) -> str:
        """The nodes from `text` and `numeric` to the masses [N, K]; gives back the name of the masses."""
        stacked = _side_by_side(self.members)
        words = self.inputs.front.add_to(graph, "text")
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


def _side_by_side(members: tuple[Weights, ...]) -> Weights:
    """One set of weights on [inputs, all members' hidden], whose members do not meet."""
    return Weights(
        hidden=np.hstack([m.hidden for m in members]),
        hidden_bias=np.concatenate([m.hidden_bias for m in members]),
        gate=_blocks(members, [m.gate for m in members]),
        gate_bias=np.concatenate([m.gate_bias for m in members]),
        experts=_blocks(members, [m.experts for m in members]),
        profiles=np.vstack([m.profiles for m in members]),
    )


def _blocks(members: tuple[Weights, ...], matrices: list[Array]) -> Array:
    """Matrices with rows [inputs, own hidden] as one: hidden block-diagonal, inputs shared."""
    width = len(members[0].hidden)
    own = block_diag(*[matrix[width:] for matrix in matrices])
    return np.asarray(np.vstack([np.hstack([matrix[:width] for matrix in matrices]), own]), dtype=np.float32)
