"""Two length models as one ONNX graph: the weighted mean of their bin masses."""

import onnx
from onnx import compose

from paceline_lab.lengths.graph import GraphBuilder, normalised, quantile_nodes


def mixture_graph(first: onnx.ModelProto, second: onnx.ModelProto, share: float) -> onnx.ModelProto:
    """A graph that answers `share` * first + (1 - `share`) * second; both read the same features."""
    graph = GraphBuilder()
    parts = [
        graph.node("Mul", _add(graph, model, prefix), graph.scalar(weight))
        for model, prefix, weight in ((first, "first_", share), (second, "second_", 1 - share))
    ]
    probabilities = normalised(graph, graph.node("Add", *parts))
    widths = {given.name: given.type.tensor_type.shape.dim[1].dim_value for given in first.graph.input}
    return graph.model(
        probabilities,
        quantile_nodes(graph, probabilities),
        widths["text"],
        widths["numeric"],
        doc=f"{share:g} of ({first.graph.doc_string}) + {1 - share:g} of ({second.graph.doc_string})",
    )


def _add(graph: GraphBuilder, model: onnx.ModelProto, prefix: str) -> str:
    """The nodes behind a model's `probabilities`, renamed; gives back the name of that result."""
    renamed = compose.add_prefix(model, prefix, rename_inputs=False).graph
    result = next(one.name for one in renamed.output if one.name == f"{prefix}probabilities")
    needed, nodes = {result}, []
    for node in reversed(renamed.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    graph.nodes.extend(reversed(nodes))
    for constant in renamed.initializer:
        if constant.name in needed:
            graph.constants[constant.name] = constant
    return result
