"""Several length models as one ONNX graph: the weighted mean of their bin masses; all read the same features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import compose

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.graph import GraphBuilder, normalised
from paceline_lab.lengths.sharing import share_text
from paceline_predictor.features import NUMERIC


@dataclass(frozen=True, slots=True)
class Part:
    """A model of a mixture, and how much it counts."""

    model: onnx.ModelProto
    known: float
    """Share for questions of known apps without a token out."""
    otherwise: float
    """Share for questions of other apps, and for answers in progress."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """What questions of apps that training has not seen are answered with, beside what the parts say."""

    masses: FloatArray
    """float64[K]: of all answers."""
    share: float


def mixture_graph(
    parts: Sequence[Part], apps: Sequence[int] = (), sharpening: float = 1.0, hedge: Hedge | None = None
) -> onnx.ModelProto:
    """A graph that answers the weighted mean of its parts. Raises ValueError unless shares add up to one.

    `apps`: columns of `text` that known apps have; without any, no app is known. `sharpening`: exponent of the mean for
    known apps: each part hedges, and a mean of parts that err in different places is wider than it has to be.
    """
    for shares in ([part.known for part in parts], [part.otherwise for part in parts]):
        if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
            raise ValueError(f"shares are {shares}")
    graph = GraphBuilder()
    masses = [_add(graph, part.model, f"part{number}_") for number, part in enumerate(parts)]
    share_text(graph)
    later = _mean(graph, masses, [part.otherwise for part in parts])
    arrival = later if hedge is None else _hedged(graph, later, hedge)
    has_output = graph.node("Gather", "numeric", graph.integers(NUMERIC.index("has_output")), axis=1)
    is_later = graph.node("Greater", has_output, graph.scalar(0.5))
    mixed = graph.node("Where", is_later, later, arrival)
    if apps:
        known = _mean(graph, masses, [part.known for part in parts])
        if sharpening != 1:
            known = graph.node("Pow", known, graph.scalar(sharpening))
        tags = graph.node("Gather", "text", graph.integers(*apps), axis=1)
        named = graph.node("ReduceMax", tags, graph.integers(1), keepdims=1)
        new = graph.node("Greater", named, has_output)  # both are 0 or 1
        anew = graph.node("Where", new, known, mixed)
        # Parts that count for known apps alone are asked when a question is of one.
        some = graph.node("ReduceMax", graph.node("Sub", named, has_output), keepdims=0)
        mixed = graph.either(graph.node("Greater", some, graph.scalar(0.5)), anew, mixed)
    probabilities = normalised(graph, mixed)
    given = parts[0].model.graph.input
    widths = {one.name: one.type.tensor_type.shape.dim[1].dim_value for one in given}
    return graph.model(
        probabilities,
        "",
        widths["text"],
        widths["numeric"],
        doc=" + ".join(f"{part.known:g} of ({part.model.graph.doc_string})" for part in parts),
    )


def _hedged(graph: GraphBuilder, masses: str, hedge: Hedge) -> str:
    broad = graph.constant("hedge", (hedge.share * hedge.masses)[None, :].astype(np.float32))
    return graph.node("Add", graph.node("Mul", masses, graph.scalar(1 - hedge.share)), broad)


def _mean(graph: GraphBuilder, masses: Sequence[str], shares: Sequence[float]) -> str:
    weighted = [
        graph.node("Mul", one, graph.scalar(share))
        for one, share in zip(masses, shares, strict=True)
        if share
    ]
    return weighted[0] if len(weighted) == 1 else graph.node("Sum", *weighted)


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
