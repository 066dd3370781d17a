"""The mixture of experts: gradients, the ONNX graph against numpy, and what it learns from a made-up workload."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from paceline_core.lengths import K, conditioned
from paceline_lab.lengths.design import RawFeatures
from paceline_lab.lengths.graph import LEVELS, answer, check, session
from paceline_lab.lengths.moe.bins import EDGE_WEIGHTS, bin_indices, smooth_basis, with_tail
from paceline_lab.lengths.moe.loss import Targets, given_cdfs, goal_cdfs, known_edges, score
from paceline_lab.lengths.moe.model import Inputs, MixtureOfExperts, fit_inputs
from paceline_lab.lengths.moe.network import Weights, forward
from paceline_lab.lengths.moe.share import best_share
from paceline_lab.lengths.moe.training import MoeParams, Sample, gradient, loss, start, train

WORDS, NUMBERS, FAMILIES = 256, 5, 3
SMALL = MoeParams(components=8, hidden=8, basis=6, members=2, steps=400, every=100, learning_rate=5e-3)


@dataclass(frozen=True)
class Workload:
    """Answers whose median depends on the family (told by words) and on one number."""

    text: NDArray[np.float32]
    numeric: NDArray[np.float32]
    family: NDArray[np.int64]
    lengths: NDArray[np.float64]
    targets: Targets

    def fold(self) -> NDArray[np.int64]:
        return np.arange(len(self.family)) % SMALL.folds

    def inputs(self, params: MoeParams) -> tuple[Inputs, NDArray[np.float32]]:
        each = np.ones(len(self.family))
        raw = RawFeatures(csr_matrix(self.text), self.numeric)
        return fit_inputs(raw, np.log(self.targets.lengths)[:, None], each, each, self.fold(), params, seed=0)

    def sample(self, params: MoeParams) -> Sample:
        inputs, rows = self.inputs(params)
        each = np.ones(len(self.family), np.float32)
        return Sample(rows, inputs.words, self.targets, self.family, each, self.fold())


def workload(seed: int, rows: int = 1200, cut_at: float = 400.0) -> Workload:
    rng = np.random.default_rng(seed)
    family = rng.integers(0, FAMILIES, rows)
    text = rng.poisson(0.05, (rows, WORDS)).astype(np.float32)
    for m in range(FAMILIES):
        own = np.flatnonzero(family == m)
        text[np.ix_(own, np.arange(10 * m, 10 * m + 10))] += rng.poisson(1.5, (len(own), 10))
    numeric = rng.normal(0, 1, (rows, NUMBERS)).astype(np.float32)
    middle = np.array([3.0, 4.5, 6.0])[family] + 0.5 * numeric[:, 0]
    lengths = np.ceil(np.exp(middle + 0.4 * rng.standard_normal(rows)))
    cap = np.where(rng.random(rows) < 0.3, cut_at, np.inf)
    generated = np.where(rng.random(rows) < 0.3, np.floor(0.5 * np.minimum(lengths, cap)), 0.0)
    targets = Targets(np.minimum(lengths, cap), lengths > cap, generated)
    return Workload(text, numeric, family, lengths, targets)


def fitted(made: Workload, params: MoeParams = SMALL, seed: int = 0) -> MixtureOfExperts:
    sample = made.sample(params)
    members = tuple(train(sample, FAMILIES, params, seed, held_out=m) for m in range(params.members))
    return MixtureOfExperts(made.inputs(params)[0], tuple("abc"), members)


@pytest.fixture(scope="module")
def learned() -> MixtureOfExperts:
    return fitted(workload(seed=1))


def test_the_gradient_is_that_of_the_loss() -> None:
    made = workload(seed=3, rows=40)
    params = replace(SMALL, gate=0.3, likelihood=0.2)
    sample = made.sample(params)
    rng = np.random.default_rng(0)
    weights = start(sample, FAMILIES, params, rng).with_dtype(np.float64)
    weights = weights.each(lambda a: a + 0.3 * rng.standard_normal(a.shape))
    basis = smooth_basis(params.basis)
    goals = goal_cdfs(forward(weights, basis, sample.inputs).masses, made.targets)
    found = gradient(weights, basis, sample, params, rng=None)
    assert made.targets.censored.any()
    assert (made.targets.generated > 0).any()
    for name in Weights.__dataclass_fields__:
        array = getattr(weights, name)
        for index in {tuple(int(rng.integers(0, s)) for s in array.shape) for _ in range(6)}:

            def at(step: float, name: str = name, index: tuple[int, ...] = index) -> float:
                moved = getattr(weights, name).copy()
                moved[index] += step
                return loss(replace(weights, **{name: moved}), basis, sample, params, goals)

            slope = (at(1e-5) - at(-1e-5)) / 2e-5
            assert getattr(found, name)[index] == pytest.approx(slope, rel=2e-4, abs=1e-7), (name, index)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_the_graph_agrees_with_numpy_on_any_features(
    learned: MixtureOfExperts, seed: int, rows: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    text = rng.poisson(rng.random(WORDS) * size, (rows, WORDS)).astype(np.float32)
    numeric = (size * rng.standard_normal((rows, NUMBERS))).astype(np.float32)
    probabilities, quantiles = answer(session(learned.graph()), text, numeric)
    np.testing.assert_allclose(probabilities, learned.masses(text, numeric), atol=2e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert quantiles.shape == (rows, len(LEVELS))
    assert (np.diff(quantiles, axis=1) >= 0).all()


def test_the_graph_bears_absurd_features(learned: MixtureOfExperts) -> None:
    check(learned.graph())


def test_the_answers_of_a_row_do_not_depend_on_the_others(learned: MixtureOfExperts) -> None:
    made = workload(seed=5, rows=20)
    runner = session(learned.graph())
    together, _ = answer(runner, made.text, made.numeric)
    alone, _ = answer(runner, made.text[7:8], made.numeric[7:8])
    np.testing.assert_allclose(alone[0], together[7], atol=1e-6)


def test_the_gate_learns_the_family(learned: MixtureOfExperts) -> None:
    unseen = workload(seed=2)
    right = learned.gate(unseen.text, unseen.numeric).argmax(axis=1) == unseen.family
    assert right.mean() > 0.9


def test_the_distribution_is_far_better_than_a_constant_one_on_unseen_rows(learned: MixtureOfExperts) -> None:
    seen, unseen = workload(seed=1), workload(seed=2, cut_at=np.inf)
    arrival = replace(unseen.targets, generated=np.zeros(len(unseen.lengths)))
    ours = score(learned.masses(unseen.text, unseen.numeric), arrival, 0.0).rps.mean()
    counts = np.bincount(bin_indices(seen.lengths), minlength=K) + 1e-3
    constant = np.repeat((counts / counts.sum())[None, :], len(unseen.lengths), axis=0)
    assert ours < 0.5 * score(constant, arrival, 0.0).rps.mean()


def test_cut_answers_do_not_shorten_what_is_predicted(learned: MixtureOfExperts) -> None:
    """Three in ten answers were cut at 400 tokens, half of the longest family; the others say how long they get."""
    unseen = workload(seed=2)
    longest = unseen.family == 2
    masses = learned.masses(unseen.text, unseen.numeric)[longest]
    predicted = masses[:, bin_indices(np.array([400.0]))[0] + 1 :].sum(axis=1).mean()
    assert predicted == pytest.approx((unseen.lengths[longest] > 400).mean(), abs=0.08)


def test_training_again_gives_the_same_bytes() -> None:
    made = workload(seed=4, rows=300)
    short = replace(SMALL, steps=60, every=20)
    first, second, other = (fitted(made, short, seed).graph().SerializeToString() for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_a_survivor_is_scored_on_the_masses_that_serving_conditions() -> None:
    masses = np.random.default_rng(0).dirichlet(np.ones(K), 4)
    lengths, generated = np.array([90.0, 400.0, 55.0, 3000.0]), np.array([50.0, 200.0, 50.0, 800.0])
    scored = score(masses, Targets(lengths, np.zeros(4, bool), generated), 0.0)
    served = conditioned(with_tail(masses), generated, np.full(4, 1e9))
    steps = np.arange(K) >= bin_indices(lengths)[:, None]
    by_hand = (EDGE_WEIGHTS * (served.cumsum(axis=1) - steps) ** 2).sum(axis=1)
    np.testing.assert_allclose(scored.rps, by_hand, rtol=1e-9)


def test_the_share_of_a_mixture_is_the_one_with_the_least_score() -> None:
    rng = np.random.default_rng(8)
    made = workload(seed=6, rows=400)
    first, second = (rng.dirichlet(np.full(K, 0.3), 400) for _ in range(2))
    weights = rng.random(400)

    def scored(share: float) -> float:
        gap = share * given_cdfs(first, made.targets) + (1 - share) * given_cdfs(second, made.targets)
        gap -= goal_cdfs(first, made.targets)
        by_row = (EDGE_WEIGHTS * known_edges(made.targets) * gap**2).sum(axis=1)
        return float(weights @ by_row)

    best = best_share(first, second, made.targets, weights)
    shares = np.linspace(0, 1, 101)
    assert best == pytest.approx(shares[np.argmin([scored(share) for share in shares])], abs=0.01)
    assert best_share(second, first, made.targets, weights) == pytest.approx(1 - best, abs=1e-6)
    right = given_cdfs(np.eye(K)[bin_indices(made.targets.lengths)], made.targets)
    masses = np.diff(right, axis=1, prepend=0.0)
    uncut = replace(made.targets, censored=np.zeros(400, bool))
    assert best_share(masses, second, uncut, weights) > 0.95
    assert best_share(first, masses, uncut, weights) < 0.05
