"""The mixture of experts in numpy: forward pass and gradients. `export` writes the same arithmetic as an ONNX graph.

h = [t W, x, tanh([t W, x] A + a)]        t: tf-idf text of length one [V], x: standardised numbers [F]
gate = softmax(h G + g)                   over the task families, [M]
logits_m = (h E_m) C + b_m                C: smooth basis over the bins [B, K], b_m: a free profile of the family
p = sum_m gate_m softmax(logits_m)        [K]
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from paceline_lab.lengths.moe.bins import Array


@dataclass(frozen=True, slots=True)
class Weights:
    """All that is learned; also the shape of a gradient and of an optimiser's moments."""

    projection: Array
    """[V, R], W."""
    hidden: Array
    """[R + F, H], A."""
    hidden_bias: Array
    """[H], a."""
    gate: Array
    """[R + F + H, M], G."""
    gate_bias: Array
    """[M], g."""
    experts: Array
    """[R + F + H, M * B], the E_m side by side."""
    profiles: Array
    """[M, K], b_m."""

    def each(self, change: Callable[..., Array], *others: "Weights") -> "Weights":
        """`change` of every array and of those of the same name in `others`."""
        return Weights(
            **{
                f.name: change(getattr(self, f.name), *(getattr(o, f.name) for o in others))
                for f in fields(self)
            }
        )

    def arrays(self) -> list[Array]:
        """The arrays, in the order of the fields."""
        return [getattr(self, f.name) for f in fields(self)]

    def with_dtype(self, dtype: type[np.floating]) -> "Weights":
        """The same numbers in another precision."""
        return self.each(lambda a: a.astype(dtype))


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs of N rows as the network takes them."""

    text: sparse.csr_matrix
    """tf-idf, [N, V]."""
    numeric: Array
    """standardised, [N, F]."""

    def __len__(self) -> int:
        return int(self.numeric.shape[0])

    def rows(self, chosen: NDArray[np.int64]) -> "Rows":
        """The chosen rows, in that order."""
        return replace(self, text=self.text[chosen], numeric=self.numeric[chosen])


@dataclass(frozen=True, slots=True)
class Pass:
    """What a forward pass computed, [N, ...]."""

    inputs: Array
    features: Array
    gate: Array
    experts: Array
    """[N, M, K]: the experts' own masses."""
    masses: Array
    """[N, K]: their mixture."""


def forward(weights: Weights, basis: Array, rows: Rows, keep: Array | None = None) -> Pass:
    """The mixture of every row. `keep` [N, R + F + H]: factors on the features (dropout), None: all 1."""
    families = len(weights.gate_bias)
    inputs = np.hstack([rows.text @ weights.projection, rows.numeric])
    hidden = np.tanh(inputs @ weights.hidden + weights.hidden_bias)
    features = np.hstack([inputs, hidden])
    if keep is not None:
        features = features * keep
    gate = softmax(features @ weights.gate + weights.gate_bias)
    moves = (features @ weights.experts).reshape(len(rows), families, len(basis))
    experts = softmax(moves @ basis + weights.profiles)
    masses = np.einsum("nm,nmk->nk", gate, experts)
    return Pass(inputs, features, gate, experts, masses)


def backward(
    weights: Weights,
    basis: Array,
    rows: Rows,
    done: Pass,
    by_masses: Array,
    by_gate_logits: Array,
    keep: Array | None = None,
) -> Weights:
    """Gradient of a loss from its slopes by the masses [N, K] and, further ones, by the gate's logits [N, M]."""
    families, size = len(weights.gate_bias), len(basis)
    by_gate = np.einsum("nk,nmk->nm", by_masses, done.experts)
    logits = done.gate * (by_gate - (done.gate * by_gate).sum(axis=1, keepdims=True)) + by_gate_logits
    centred = by_masses[:, None, :] - by_gate[:, :, None]
    profiles = done.gate[:, :, None] * done.experts * centred
    moves = (profiles @ basis.T).reshape(len(rows), families * size)
    features = logits @ weights.gate.T + moves @ weights.experts.T
    if keep is not None:
        features = features * keep
    width = done.inputs.shape[1]
    raw_hidden = np.tanh(done.inputs @ weights.hidden + weights.hidden_bias)
    hidden = features[:, width:] * (1 - raw_hidden**2)
    inputs = features[:, :width] + hidden @ weights.hidden.T
    text_width = weights.projection.shape[1]
    return Weights(
        projection=np.asarray(rows.text.T @ np.ascontiguousarray(inputs[:, :text_width])),
        hidden=done.inputs.T @ hidden,
        hidden_bias=hidden.sum(axis=0),
        gate=done.features.T @ logits,
        gate_bias=logits.sum(axis=0),
        experts=done.features.T @ moves,
        profiles=profiles.sum(axis=0),
    )


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))
