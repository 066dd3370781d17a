"""The mixture of experts in numpy: forward pass and gradients. `model` writes the same arithmetic as an ONNX graph.

h = [x, tanh(x A + a)]                    x: components of the words and standardised numbers, [D]
gate = softmax(h G + g)                   over the task families, [M]
logits_m = (h E_m) C + b_m                C: smooth basis over the bins [B, K], b_m: a free profile of the family
p = sum_m gate_m softmax(logits_m)        [K]
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from paceline_lab.lengths.moe.bins import Array


@dataclass(frozen=True, slots=True)
class Weights:
    """All that is learned; also the shape of a gradient and of an optimiser's moments."""

    hidden: Array
    """[D, H], A."""
    hidden_bias: Array
    """[H], a."""
    gate: Array
    """[D + H, M], G."""
    gate_bias: Array
    """[M], g."""
    experts: Array
    """[D + H, M * B], the E_m side by side."""
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
class Pass:
    """What a forward pass computed, [N, ...]."""

    hidden: Array
    """[N, H], before dropout."""
    features: Array
    """[N, D + H]: h, after dropout."""
    gate: Array
    experts: Array
    """[N, M, K]: the experts' own masses."""
    masses: Array
    """[N, K]: their mixture."""


def forward(weights: Weights, basis: Array, inputs: Array, keep: Array | None = None) -> Pass:
    """The mixture of every row of inputs [N, D]. `keep` [N, D + H]: factors on h (dropout), None: all 1."""
    families = len(weights.gate_bias)
    hidden = np.tanh(inputs @ weights.hidden + weights.hidden_bias)
    features = np.hstack([inputs, hidden])
    if keep is not None:
        features = features * keep
    gate = softmax(features @ weights.gate + weights.gate_bias)
    moves = (features @ weights.experts).reshape(len(inputs), families, len(basis))
    experts = softmax(moves @ basis + weights.profiles)
    masses = (gate[:, None, :] @ experts)[:, 0, :]
    return Pass(hidden, features, gate, experts, masses)


def backward(
    weights: Weights,
    basis: Array,
    inputs: Array,
    done: Pass,
    by_masses: Array,
    by_gate_logits: Array,
    keep: Array | None = None,
) -> Weights:
    """Gradient of a loss from its slopes by the masses [N, K] and, further ones, by the gate's logits [N, M]."""
    families, size = len(weights.gate_bias), len(basis)
    by_gate = (done.experts @ by_masses[:, :, None])[:, :, 0]
    logits = done.gate * (by_gate - (done.gate * by_gate).sum(axis=1, keepdims=True)) + by_gate_logits
    centred = by_masses[:, None, :] - by_gate[:, :, None]
    profiles = done.gate[:, :, None] * done.experts * centred
    moves = (profiles @ basis.T).reshape(len(inputs), families * size)
    features = logits @ weights.gate.T + moves @ weights.experts.T
    if keep is not None:
        features = features * keep
    hidden = features[:, inputs.shape[1] :] * (1 - done.hidden**2)
    return Weights(
        hidden=inputs.T @ hidden,
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
