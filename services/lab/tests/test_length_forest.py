import numpy as np
import pytest
from quantile_forest import ExtraTreesQuantileRegressor, RandomForestQuantileRegressor
from sklearn.ensemble import ExtraTreesRegressor

from paceline_core.lengths import K, bin_of
from paceline_lab.lengths.graph import (
    LEVELS,
    GraphBuilder,
    answer,
    check,
    normalised,
    quantile_nodes,
    session,
)
from paceline_lab.lengths.qrf.export import forest_nodes, kaplan_meier
from paceline_lab.lengths.qrf.forest import SHARES, Forest, forest_of, rounded_down, spread

FEATURES = 8


def _problem(seed: int, rows: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Random features, and lengths that depend on three of them, with noise."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, FEATURES)).astype(np.float32)
    log_length = 5 + x[:, 0] + x[:, 1] * x[:, 2] + random.normal(0, 0.6, rows)
    return x, np.maximum(1, np.round(np.exp(log_length)))


def _model(forest: Forest):
    graph = GraphBuilder()
    masses = normalised(graph, forest_nodes(graph, forest, "numeric"))
    return graph.model(masses, quantile_nodes(graph, masses), 4, FEATURES)


def _answer(forest: Forest, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return answer(session(_model(forest)), np.zeros((len(x), 4), np.float32), x)


@pytest.mark.parametrize("kind", [RandomForestQuantileRegressor, ExtraTreesQuantileRegressor])
def test_quantiles_agree_with_those_of_quantile_forest_on_the_same_trees(kind):
    apart = np.concatenate([_bins_apart(kind, seed) for seed in range(4)])
    assert (apart <= 1).mean() >= 0.999
    assert (apart == 0).mean() >= 0.95


def _bins_apart(kind, seed: int) -> np.ndarray:
    x, lengths = _problem(seed, rows=1500)
    drawn = kind is RandomForestQuantileRegressor
    fitted = kind(
        50, min_samples_leaf=10, max_samples_leaf=None, bootstrap=drawn, max_features=0.5, random_state=seed
    ).fit(x, lengths)
    weights = [np.bincount(rows, minlength=len(x)).astype(float) for rows in fitted.estimators_samples_]
    forest = forest_of(fitted.estimators_, x, spread(lengths, np.ones(len(x))), weights)
    unseen = np.random.default_rng(100 + seed).normal(size=(1000, FEATURES)).astype(np.float32)
    _, ours = _answer(forest, unseen)
    theirs = fitted.predict(unseen, quantiles=list(LEVELS), weighted_leaves=True)
    # A quantile just above an edge by rounding alone is not in another bin.
    return abs(
        bin_of(np.ceil(ours - 1e-3).astype(np.int64)) - bin_of(np.ceil(theirs).astype(np.int64))
    ).ravel()


def test_masses_in_the_graph_are_the_averages_of_the_leaves():
    x, lengths = _problem(0)
    fitted = ExtraTreesRegressor(20, min_samples_leaf=5, random_state=0).fit(x, np.log(lengths))
    responses = spread(lengths, np.ones(len(x)))
    forest = forest_of(fitted.estimators_, x, responses, np.ones(len(x)))
    probabilities, _ = _answer(forest, x[:50])
    leaf = fitted.apply(x)
    expected = np.zeros((50, K))
    for tree in range(20):
        for row in range(50):
            expected[row] += responses[leaf[:, tree] == leaf[row, tree]].mean(axis=0) / 20
    assert np.abs(probabilities - expected).max() < 1 / SHARES
    assert np.abs(np.cumsum(probabilities - expected, axis=1)).max() < 0.01


def test_a_threshold_sends_every_float32_the_way_the_float64_sent_it():
    random = np.random.default_rng(0)
    thresholds = np.concatenate(
        [random.normal(size=1000), random.normal(size=1000).astype(np.float32), [0.0, 1e-40]]
    )
    rounded = rounded_down(thresholds)
    near = thresholds.astype(np.float32)
    for x in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
        assert ((x.astype(np.float64) <= thresholds) == (x <= rounded)).all()


def test_a_tree_without_a_split_and_absurd_features_are_answered():
    x, lengths = _problem(0, rows=200)
    fitted = ExtraTreesRegressor(3, min_samples_leaf=200).fit(x, lengths)
    forest = forest_of(fitted.estimators_, x, spread(lengths, np.ones(200)), np.ones(200))
    check(_model(forest))
    probabilities, _ = _answer(forest, np.array([[np.nan] * FEATURES, [np.inf] * FEATURES], np.float32))
    assert np.abs(probabilities - spread(lengths, np.ones(200)).mean(axis=0)).max() < 1 / SHARES


def test_leaves_of_cut_answers_give_kaplan_meier():
    """One leaf: the estimate must be the textbook product over bins."""
    random = np.random.default_rng(0)
    bins, cut = random.integers(10, 30, 300), random.random(300) < 0.4
    responses = np.zeros((300, 2 * K))
    responses[np.arange(300), bins + K * cut] = 1
    fitted = ExtraTreesRegressor(1, min_samples_leaf=300).fit(np.zeros((300, FEATURES), np.float32), bins)
    forest = forest_of(fitted.estimators_, np.zeros((300, FEATURES), np.float32), responses, np.ones(300))
    assert forest.censored
    probabilities, _ = _answer(forest, np.zeros((1, FEATURES), np.float32))
    survival, expected = 1.0, np.zeros(K)
    for k in range(K):
        at_risk = (bins[~cut] >= k).sum() + (bins[cut] > k).sum()
        hazard = (bins[~cut] == k).sum() / at_risk if at_risk else 0.0
        expected[k] = survival * (1.0 if k == K - 1 else hazard)
        survival -= expected[k]
    assert np.abs(probabilities[0] - expected).max() < 0.01
    assert abs(probabilities[0].sum() - 1) < 1e-6


def test_kaplan_meier_of_uncut_answers_is_their_histogram():
    graph = GraphBuilder()
    table = graph.node("Slice", "text", *(graph.integers(v) for v in (0, 2 * K, 1)))
    masses = kaplan_meier(graph, table)
    runner = session(graph.model(masses, quantile_nodes(graph, masses), 2 * K, FEATURES))
    text = np.zeros((50, 2 * K), np.float32)
    text[:, :K] = np.random.default_rng(0).dirichlet(np.full(K, 0.3), 50)
    probabilities, _ = answer(runner, text, np.zeros((50, FEATURES), np.float32))
    assert np.abs(probabilities - text[:, :K]).max() < 1e-5


def test_a_scaled_length_keeps_its_mass():
    lengths, scale = np.array([1.0, 2.0, 100.0, 60_000.0]), np.array([0.3, 1.0, 2.5, 9.0])
    masses = spread(lengths, scale)
    assert np.allclose(masses.sum(axis=1), 1)
    assert (masses >= 0).all()
    assert masses.argmax(axis=1)[[0, 1, 3]].tolist() == [0, 1, K - 1]
    assert abs(int(masses[2].argmax()) - int(bin_of(250))) <= 1
