"""Front ends of a mixture's parts are done as one, and the parts say in it what they say alone."""

import numpy as np
import onnx

from paceline_core.lengths import K
from paceline_lab.lengths.graph import (
    GraphBuilder,
    TextFrontEnd,
    answer,
    check,
    inputs_of,
    normalised,
    quantile_nodes,
    session,
)
from paceline_lab.lengths.mixture import Part, mixture_graph
from paceline_lab.lengths.sharing import share_text
from paceline_predictor.features import NUMERIC

BUCKETS = 64


def _worded(seed: int, components: int) -> onnx.ModelProto:
    """Masses that hang on the words, with weights of buckets of its own; some buckets it has not seen."""
    random = np.random.default_rng(seed)
    idf = random.uniform(1, 8, BUCKETS).astype(np.float32) * (random.random(BUCKETS) > 0.2)
    front = TextFrontEnd(idf.astype(np.float32), random.normal(size=(BUCKETS, components)).astype(np.float32))
    graph = GraphBuilder()
    weights = random.normal(0, 2, (components, K)).astype(np.float32)
    logits = graph.node("MatMul", front.add_to(graph, "text"), graph.constant("weights", weights))
    masses = normalised(graph, graph.node("Exp", logits))
    return graph.model(masses, quantile_nodes(graph, masses), BUCKETS, len(NUMERIC))


def _given() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(9)
    text = random.poisson(0.4, (30, BUCKETS)).astype(np.float32)
    text[0] = 0
    return text, random.normal(size=(30, len(NUMERIC))).astype(np.float32)


def test_a_mixture_is_the_weighted_mean_of_what_its_parts_say_of_the_words() -> None:
    models = [_worded(seed, components) for seed, components in enumerate((3, 8, 1))]
    shares = (0.2, 0.5, 0.3)
    mixed = mixture_graph([Part(model, share, share) for model, share in zip(models, shares, strict=True)])
    check(mixed)
    text, numeric = _given()
    expected = sum(
        share * answer(session(model), text, numeric)[0] for model, share in zip(models, shares, strict=True)
    )
    assert np.abs(answer(session(mixed), text, numeric)[0] - expected).max() < 1e-5


def test_the_text_is_weighted_and_projected_once() -> None:
    mixed = mixture_graph([Part(_worded(seed, 4), 0.5, 0.5) for seed in range(2)])
    (way,) = [node for node in mixed.graph.node if node.op_type == "If" and "text" in inputs_of(node)]
    (dense,) = [attribute.g for attribute in way.attribute if attribute.name == "else_branch"]
    assert sorted(node.op_type for node in dense.node if "text" in node.input) == ["MatMul", "Sqrt"]
    long = [one for one in mixed.graph.initializer if one.dims and one.dims[0] == BUCKETS]
    assert sorted(tuple(one.dims) for one in long) == [(BUCKETS, 2), (BUCKETS, 8)]


def test_a_single_question_is_answered_as_many_are() -> None:
    mixed = mixture_graph([Part(_worded(seed, 4), 0.5, 0.5) for seed in range(2)])
    text, numeric = _given()
    runner = session(mixed)
    together = answer(runner, text, numeric)[0]
    for row in range(len(text)):  # the first has no words
        alone = answer(runner, text[row : row + 1], numeric[row : row + 1])[0]
        assert np.abs(alone - together[row]).max() < 1e-6


def test_what_only_one_way_needs_is_done_on_that_way_alone() -> None:
    graph = GraphBuilder()
    shared = graph.node("Relu", "numeric")
    plain = graph.node("Neg", shared)
    costly = graph.node("Add", plain, graph.node("Exp", shared))
    condition = graph.node("Greater", graph.node("ReduceMax", "numeric", keepdims=0), graph.scalar(0.5))
    result = graph.either(condition, costly, plain)
    assert [node.op_type for node in graph.nodes] == ["Relu", "Neg", "ReduceMax", "Greater", "If"]
    then_branch, else_branch = ([n.op_type for n in a.g.node] for a in graph.nodes[-1].attribute)
    assert sorted([then_branch, else_branch], key=len) == [["Identity"], ["Exp", "Add", "Identity"]]
    runner = session(graph.model(result, "", BUCKETS, K))
    for value in (0.0, 2.0):
        given = np.full((2, K), value, np.float32)
        found = answer(runner, np.zeros((2, BUCKETS), np.float32), given)[0]
        assert np.allclose(found, np.exp(value) - value if value else 0.0)


def test_a_step_of_a_front_end_that_others_read_stays() -> None:
    front = TextFrontEnd(np.ones(BUCKETS, np.float32), np.ones((BUCKETS, 2), np.float32))
    graph = GraphBuilder()
    first = front.add_to(graph, "text")
    roots = graph.nodes[0].output[0]
    other = TextFrontEnd(front.idf, front.projection[:, :1])
    second = _second(graph, other)
    graph.node("Concat", first, second, roots, axis=1)
    assert share_text(graph) == 2
    made = {name for node in graph.nodes for name in node.output}
    inner = [node for way in graph.nodes for attribute in way.attribute for node in attribute.g.node]
    known = made | {name for node in inner for name in node.output}
    assert {first, second, roots} <= made
    assert all(
        name in known or name in graph.constants or name == "text"
        for n in graph.nodes
        for name in inputs_of(n)
    )


def _second(graph: GraphBuilder, front: TextFrontEnd) -> str:
    """A front end in a graph that has one: its constants have names of their own."""
    own = GraphBuilder()
    front.add_to(own, "text")
    renamed = {
        name: f"second_{name}" for node in own.nodes for name in (*node.output, *node.input) if name != "text"
    }
    for node in own.nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    graph.nodes.extend(own.nodes)
    for name, tensor in own.constants.items():
        tensor.name = renamed[name]
        graph.constants[tensor.name] = tensor
    return str(own.nodes[-1].output[0])
