"""Text front ends of several models in one graph, done as one.

To one question a product with a matrix of 4096 rows costs by its steps more than by its columns, so the matrices of all
front ends are put side by side; the norms of the texts, which differ by weights of the buckets, come from one product.
Of a single question most buckets are empty: then only the rows of the matrices are read whose buckets are not.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from paceline_lab.lengths.graph import MIN_NORM, Float32, GraphBuilder, inputs_of


@dataclass(frozen=True, slots=True)
class _Front:
    """The nodes of a `graph.TextFrontEnd` and its constants."""

    nodes: tuple[onnx.NodeProto, ...]
    projection: Float32
    idf_squared: Float32

    @property
    def result(self) -> str:
        return str(self.nodes[0].output[0])


def share_text(graph: GraphBuilder) -> int:
    """Replace all front ends of the text by one that gives their results, first in the graph; how many there were.

    With fewer than two nothing changes.
    """
    made = {name: node for node in graph.nodes for name in node.output}
    fronts = [front for node in graph.nodes if (front := _front_of(node, made, graph)) is not None]
    if len(fronts) < 2:
        return len(fronts)
    rest = _without(graph.nodes, fronts)
    graph.nodes = []
    _add(graph, fronts)
    graph.nodes.extend(rest)
    used = {name for node in graph.nodes for name in inputs_of(node)}
    graph.constants = {name: one for name, one in graph.constants.items() if name in used}
    return len(fronts)


def _add(graph: GraphBuilder, fronts: list[_Front]) -> None:
    sizes = [front.projection.shape[1] for front in fronts]
    projection = np.concatenate([front.projection for front in fronts], axis=1)
    idf_squared = np.concatenate([front.idf_squared for front in fronts], axis=1)
    wide, squares = graph.constant("projections", projection), graph.constant("idf_squares", idf_squared)
    own = graph.constant("front_of", np.repeat(np.arange(len(fronts), dtype=np.int64), sizes))
    dense = _scaled(graph, "text", wide, squares, own)
    # For more questions at once, finding the buckets that any of them has costs what it saves.
    there = graph.node("Gather", graph.node("NonZero", "text"), graph.scalar_index(1), axis=0)
    counts = graph.node("Gather", "text", there, axis=1)
    own_wide, own_squares = (graph.node("Gather", table, there, axis=0) for table in (wide, squares))
    sparse = _scaled(graph, counts, own_wide, own_squares, own)
    count = graph.node("Shape", "text", start=0, end=1)
    scaled = graph.either(graph.node("Equal", count, graph.integers(1)), sparse, dense)
    results = [front.result for front in fronts]
    graph.nodes.append(helper.make_node("Split", [scaled, graph.integers(*sizes)], results, axis=1))


def _scaled(graph: GraphBuilder, counts: str, projection: str, idf_squared: str, own: str) -> str:
    """Components [N, C] of counts [N, B], by each front end's norm: `own` int64[C] says whose a component is."""
    product = graph.node("MatMul", graph.node("Sqrt", counts), projection)
    square = graph.node("MatMul", counts, idf_squared)
    norm = graph.node("Max", graph.node("Sqrt", square), graph.scalar(MIN_NORM))
    return graph.node("Div", product, graph.node("Gather", norm, own, axis=1))


def _without(nodes: list[onnx.NodeProto], fronts: list[_Front]) -> list[onnx.NodeProto]:
    """The nodes that are not of front ends, and what of those others read."""
    results = {front.result for front in fronts}
    inner = {name for front in fronts for node in front.nodes for name in node.output}
    kept: list[onnx.NodeProto] = []
    read: set[str] = set()
    for node in reversed(nodes):
        (*_, name) = node.output
        if name in results or (name in inner and name not in read):
            continue
        read.update(node.input)
        kept.append(node)
    return kept[::-1]


def _front_of(node: onnx.NodeProto, made: dict[str, onnx.NodeProto], graph: GraphBuilder) -> _Front | None:
    """The front end whose last node this is: Div(MatMul(Sqrt(text), P), Max(Sqrt(MatMul(text, Q)), least norm))."""
    if node.op_type != "Div":
        return None
    product, largest = (made.get(name) for name in node.input)
    if product is None or largest is None or (product.op_type, largest.op_type) != ("MatMul", "Max"):
        return None
    root, norm = made.get(product.input[0]), made.get(largest.input[0])
    if root is None or norm is None or (root.op_type, norm.op_type) != ("Sqrt", "Sqrt"):
        return None
    square = made.get(norm.input[0])
    if square is None or square.op_type != "MatMul" or {root.input[0], square.input[0]} != {"text"}:
        return None
    projection, idf_squared, least = (
        graph.constants.get(name) for name in (product.input[1], square.input[1], largest.input[1])
    )
    if projection is None or idf_squared is None or least is None:
        return None
    if numpy_helper.to_array(least) != np.float32(MIN_NORM):
        return None
    return _Front(
        (node, product, root, largest, norm, square),
        numpy_helper.to_array(projection),
        numpy_helper.to_array(idf_squared),
    )
