"""Training of one network: Adam on minibatches, averaged weights, early stopping on prompts that are held out.

Deterministic: everything random comes from the seed.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import K
from paceline_lab.lengths.moe.bins import Array, bin_indices, smooth_basis
from paceline_lab.lengths.moe.loss import Targets, score
from paceline_lab.lengths.moe.network import Weights, backward, forward

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MoeParams:
    """Size of the network and how it learns."""

    components: int = 32
    """Components of the words that are found without looking at lengths."""
    ridge: float = 2.0
    """Penalty of the component that tells of length."""
    hidden: int = 48
    """Width of the hidden layer, H."""
    basis: int = 12
    """Smooth moves an expert has over the bins, B."""
    members: int = 3
    """Networks that are averaged; each stops by other held-out prompts, so that together they see every prompt."""
    steps: int = 1200
    """At most; the learning rate falls to zero over them."""
    every: int = 100
    """Steps between two looks at the held-out prompts."""
    patience: int = 5
    """Looks without a better score before it stops."""
    batch: int = 256
    """Rows per step."""
    learning_rate: float = 2e-3
    decay: float = 2.0
    """Weight decay per unit of learning rate, decoupled from the gradient (Loshchilov and Hutter, 2019)."""
    blind: float = 0.1
    """Share of rows whose text a step does not see at all: the numbers alone must do for texts unlike any seen."""
    dropout: float = 0.3
    """Share of the features that a step does not see."""
    likelihood: float = 0.05
    """Weight of the log-likelihood beside the ranked probability score."""
    gate: float = 0.5
    """Weight of the gate's cross entropy on the family label."""
    smoothing: float = 0.05
    """Mass of a family label that is spread over all families."""
    folds: int = 8
    """A member's held-out prompts are one in so many."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows to learn from, with what is known of them."""

    inputs: Array
    """[N, D]: components of the words, then standardised numbers."""
    words: int
    """How many of the D are components of the words."""
    targets: Targets
    family: NDArray[np.int64]
    """Index of the task family, int64[N]."""
    weight: Array
    """Row weights with mean one, [N]."""
    fold: NDArray[np.int64]
    """Which fold the row's prompt is in, int64[N]."""

    def __len__(self) -> int:
        return len(self.targets)

    def rows_at(self, chosen: NDArray[np.int64]) -> "Sample":
        """The chosen rows, in that order."""
        return Sample(
            self.inputs[chosen],
            self.words,
            self.targets.rows(chosen),
            self.family[chosen],
            self.weight[chosen],
            self.fold[chosen],
        )


def train(sample: Sample, families: int, params: MoeParams, seed: int, held_out: int) -> Weights:
    """Weights that do best on the prompts of fold `held_out`, float32. Without such rows: those after all steps."""
    rng = np.random.default_rng([seed, held_out])
    inside = np.flatnonzero(sample.fold != held_out)
    learn = sample.rows_at(inside)
    judge = sample.rows_at(np.flatnonzero(sample.fold == held_out))
    basis = smooth_basis(params.basis).astype(np.float32)
    weights = start(learn, families, params, rng)
    optimiser = _Adam(weights, params)
    best, best_score, worse = weights, np.inf, 0
    batches = _batches(len(learn), params, rng)
    for step in range(1, params.steps + 1):
        batch = learn.rows_at(next(batches))
        weights = optimiser.step(weights, gradient(weights, basis, batch, params, rng))
        if not len(judge):
            best = optimiser.average
        elif step % params.every == 0 or step == params.steps:
            value = validation_score(optimiser.average, basis, judge, params)
            _log.debug("step %d: held-out score %.4f", step, value)
            if value < best_score - 1e-5:
                best, best_score, worse = optimiser.average, value, 0
            else:
                worse += 1
            if worse >= params.patience:
                break
    return best


def start(sample: Sample, families: int, params: MoeParams, rng: np.random.Generator) -> Weights:
    """Small random weights; every expert's profile says how long its family's answers are."""
    width = sample.inputs.shape[1]
    features = width + params.hidden

    def normal(rows: int, columns: int, scale: float) -> Array:
        return (scale * rng.standard_normal((rows, columns))).astype(np.float32)

    profiles = np.log(_family_counts(sample, families))
    profiles -= profiles.mean(axis=1, keepdims=True)
    share = np.bincount(sample.family, weights=sample.weight, minlength=families) + 1.0
    return Weights(
        hidden=normal(width, params.hidden, 1 / np.sqrt(width)),
        hidden_bias=np.zeros(params.hidden, np.float32),
        gate=normal(features, families, 0.01),
        gate_bias=np.log(share / share.sum()).astype(np.float32),
        experts=normal(features, families * params.basis, 0.01),
        profiles=profiles.astype(np.float32),
    )


def _family_counts(sample: Sample, families: int) -> NDArray[np.float64]:
    """How many answers of each family are in each bin, float64[M, K], beginning with 30 answers like all families'.

    A cut answer is spread over the bins above it as the others of its family are.
    """
    seen, cut = np.zeros((families, K)), np.zeros((families, K))
    at, ends = bin_indices(sample.targets.lengths), ~sample.targets.censored
    np.add.at(seen, (sample.family[ends], at[ends]), sample.weight[ends])
    np.add.at(cut, (sample.family[~ends], at[~ends]), sample.weight[~ends])
    pooled = seen.sum(axis=0) + 1.0
    seen += 30.0 * pooled / pooled.sum()
    above = seen[:, None, :] * np.triu(np.ones((K, K)), 1)
    share = above / np.maximum(above.sum(axis=2, keepdims=True), 1e-12)
    return np.asarray(seen + np.einsum("mb,mbk->mk", cut, share))


def gradient(
    weights: Weights, basis: Array, batch: Sample, params: MoeParams, rng: np.random.Generator | None
) -> Weights:
    """Gradient of the mean loss of a batch; `rng` draws what dropout hides, None: nothing is hidden."""
    inputs, keep = batch.inputs, None
    if rng is not None:
        seen = np.ones(inputs.shape, np.float32)
        seen[:, : batch.words] = rng.random((len(batch), 1)) >= params.blind
        inputs = inputs * seen
        shape = (len(batch), len(weights.gate))
        keep = (rng.random(shape) >= params.dropout).astype(np.float32) / np.float32(1 - params.dropout)
    done = forward(weights, basis, inputs, keep)
    share = (batch.weight / len(batch))[:, None]
    by_masses = share * score(done.masses, batch.targets, params.likelihood).gradient
    by_gate = params.gate * share * (done.gate - _labels(batch, done.gate.shape[1], params))
    return backward(weights, basis, inputs, done, by_masses, by_gate, keep)


def loss(weights: Weights, basis: Array, batch: Sample, params: MoeParams, goals: Array) -> float:
    """The mean loss whose gradient `gradient` takes, for given target CDFs [N, K] and nothing hidden."""
    done = forward(weights, basis, batch.inputs)
    scored = score(done.masses, batch.targets, params.likelihood, goals)
    labels = _labels(batch, done.gate.shape[1], params)
    entropy = -(labels * np.log(np.maximum(done.gate, 1e-30))).sum(axis=1)
    rows = scored.rps + params.likelihood * scored.log_loss + params.gate * entropy
    return float((batch.weight * rows).mean())


def validation_score(weights: Weights, basis: Array, judge: Sample, params: MoeParams) -> float:
    """Weighted mean of what the experts are trained on, over the known part of each outcome."""
    total = 0.0
    for at in range(0, len(judge), 4096):
        part = judge.rows_at(np.arange(at, min(at + 4096, len(judge))))
        scored = score(forward(weights, basis, part.inputs).masses, part.targets, params.likelihood)
        total += float((part.weight * (scored.known_rps + params.likelihood * scored.log_loss)).sum())
    return total / float(judge.weight.sum())


def _batches(rows: int, params: MoeParams, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Row numbers of one batch after the other: all rows in a new order, again and again."""
    while True:
        order = rng.permutation(rows)
        for at in range(0, rows, params.batch):
            yield order[at : at + params.batch]


def _labels(batch: Sample, families: int, params: MoeParams) -> Array:
    labels = np.full((len(batch), families), params.smoothing / families, batch.weight.dtype)
    labels[np.arange(len(batch)), batch.family] += 1 - params.smoothing
    return labels


class _Adam:
    """Adam (Kingma and Ba, 2015) with decoupled decay, a rate that falls to zero, and averaged weights."""

    def __init__(self, weights: Weights, params: MoeParams) -> None:
        self._params, self._done = params, 0
        self._first = weights.each(np.zeros_like)
        self._second = weights.each(np.zeros_like)
        self.average = weights

    def step(self, weights: Weights, slope: Weights) -> Weights:
        """Weights after one step against a gradient, whose norm is cut at 1."""
        self._done += 1
        norm = np.sqrt(sum(float((a**2).sum()) for a in slope.arrays()))
        cut = np.float32(min(1.0, 1.0 / max(norm, 1e-12)))
        rate = (
            self._params.learning_rate
            * min(1.0, self._done / 50)
            * (1 - (self._done - 1) / self._params.steps)
        )
        self._first = self._first.each(lambda m, g: 0.9 * m + 0.1 * cut * g, slope)
        self._second = self._second.each(lambda v, g: 0.999 * v + 0.001 * (cut * g) ** 2, slope)
        at_first, at_second = 1 - 0.9**self._done, 1 - 0.999**self._done

        def moved(w: Array, m: Array, v: Array) -> Array:
            move = (m / at_first) / (np.sqrt(v / at_second) + 1e-8)
            keep = 1 - rate * self._params.decay if w.ndim == 2 else 1.0
            return np.asarray(keep * w - rate * move, w.dtype)

        profiles = weights.profiles
        weights = weights.each(moved, self._first, self._second)
        # A profile is where a family begins, not a dependence to be kept small.
        drop = rate * self._params.decay
        weights = replace(weights, profiles=np.asarray(weights.profiles + drop * profiles, profiles.dtype))
        hold = min(0.99, self._done / (self._done + 10))
        self.average = self.average.each(lambda a, w: np.asarray(hold * a + (1 - hold) * w, a.dtype), weights)
        return weights
