import json

import numpy as np
import onnx
import pytest

from paceline_core.lengths import EDGES, OPEN_EDGE, K, quantile
from paceline_lab.lengths.graph import (
    LEVELS,
    GraphBuilder,
    GraphError,
    answer,
    check,
    describe,
    fit_text,
    normalised,
    quantile_nodes,
    session,
)

BUCKETS, NUMERIC = 64, 5


def _counts(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.3, (rows, BUCKETS)).astype(np.float32)


def _version(model: onnx.ModelProto) -> str:
    return {p.key: p.value for p in model.metadata_props}["paceline.version"]


def _linear_model(seed: int = 0, broken: bool = False) -> tuple[onnx.ModelProto, np.ndarray]:
    """A graph with the text front end, a softmax over random logits, and quantiles."""
    front = fit_text(_counts(200), 8, seed)
    weights = np.random.default_rng(seed).normal(0, 2, (8, K)).astype(np.float32)
    graph = GraphBuilder()
    components = front.add_to(graph, "text")
    logits = graph.node("MatMul", components, graph.constant("weights", weights))
    masses = logits if broken else normalised(graph, graph.node("Exp", logits))
    model = graph.model(masses, quantile_nodes(graph, masses), BUCKETS, NUMERIC)
    return model, weights


def test_the_text_front_end_in_the_graph_is_the_one_of_training():
    front = fit_text(_counts(200), 8)
    model, weights = _linear_model()
    text = _counts(20, seed=1)
    text[0] = 0
    logits = np.exp(front.transform(text) @ weights)
    probabilities, _ = answer(session(model), text, np.zeros((20, NUMERIC), np.float32))
    assert np.allclose(probabilities, logits / logits.sum(axis=1, keepdims=True), atol=1e-5)
    assert np.isfinite(probabilities[0]).all()


def test_quantiles_in_the_graph_are_those_of_the_core():
    graph = GraphBuilder()
    masses = normalised(graph, graph.node("Slice", "text", *(graph.integers(v) for v in (0, K, 1))))
    runner = session(graph.model(masses, quantile_nodes(graph, masses), BUCKETS, NUMERIC))
    random = np.random.default_rng(3)
    text = np.zeros((200, BUCKETS), np.float32)
    text[:, :K] = random.gamma(0.1, 1.0, (200, K)) + 1e-6
    probabilities, quantiles = answer(runner, text, np.zeros((200, NUMERIC), np.float32))
    cdf = np.cumsum(probabilities.astype(np.float64), axis=1)
    nothing, unlimited = np.zeros(200), np.full(200, OPEN_EDGE)
    for column, level in enumerate(LEVELS):
        expected = quantile(cdf, level, nothing, unlimited)
        assert np.allclose(quantiles[:, column], expected, rtol=1e-3)


def test_a_described_model_says_what_it_is_and_its_version_follows_its_content():
    model, _ = _linear_model()
    offsets = {"m": {"log": 0.1, "outcomes": 5, "apps": {}}}
    described = describe(model, "qrf", "f1", offsets, {"data": []})
    properties = {p.key: p.value for p in described.metadata_props}
    assert json.loads(properties["paceline.edges"]) == EDGES.tolist()
    assert json.loads(properties["paceline.offsets"]) == offsets
    again = describe(model, "qrf", "f1", offsets, {"data": ["another card"]})
    assert _version(again) == _version(described)
    for other in (
        describe(model, "qrf", "f2", offsets, {}),
        describe(model, "qrf", "f1", {}, {}),
        describe(_linear_model(seed=1)[0], "qrf", "f1", offsets, {}),
    ):
        assert _version(other) != _version(described)


def test_a_good_graph_passes_the_check_and_a_bad_one_does_not():
    check(_linear_model()[0])
    with pytest.raises(GraphError, match="distributions"):
        check(_linear_model(broken=True)[0])


def test_one_name_means_one_constant():
    graph = GraphBuilder()
    graph.constant("a", [1.0])
    with pytest.raises(GraphError, match="'a'"):
        graph.constant("a", [2.0])
