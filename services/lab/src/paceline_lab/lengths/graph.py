"""What every exported length model is built of: an ONNX graph from features to bin masses and quantiles.

    text [N, TEXT_BUCKETS] -> sqrt(count) * idf -> rows of length 1 -> projection [N, C] ---+
    numeric [N, F] ----------------------------------------------------------------------------+-> model -> masses
    masses [N, K] -> rows of sum 1 = `probabilities` (-> `quantiles` [N, 3] (P50, P90, P95))

Both outputs are before `TAIL_MIX`: `paceline_core.lengths.cdf_from_probabilities` mixes the tail in when an answer
is made from the masses. The quantiles are read as `paceline_core.lengths.quantile` reads a CDF; the service does not
read them, and what ships goes without: a graph computes all its outputs, asked for or not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from paceline_core.lengths import EDGES, OPEN_EDGE, K, quantile

OPSET = 21
ML_OPSET = 5
IR_VERSION = 10
LEVELS = (0.5, 0.9, 0.95)
"""Levels of the `quantiles` output."""

Float32 = NDArray[np.float32]
_UPPER = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float32)
_LOWER = np.concatenate([[0], EDGES[:-1]]).astype(np.float32)


class GraphError(ValueError):
    """An exported graph that does not do what a length model must."""


class GraphBuilder:
    """Collects nodes and constants; every method that adds something returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._named_nodes = 0

    def constant(self, name: str, values: np.ndarray | Sequence[float] | float) -> str:
        """A constant of this name; the same name again must mean the same values."""
        tensor = numpy_helper.from_array(np.asarray(values), name)
        if self.constants.setdefault(name, tensor).SerializeToString() != tensor.SerializeToString():
            raise GraphError(f"two constants are called {name!r}")
        return name

    def integers(self, *values: int) -> str:
        """A small int64 vector: axes, shapes, indices."""
        return self.constant("int_" + "_".join(map(str, values)), np.asarray(values, dtype=np.int64))

    def scalar_index(self, value: int) -> str:
        """An int64 scalar: gathering by it takes the dimension away."""
        return self.constant(f"index_{value}", np.asarray(value, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"float_{value!r}", np.asarray(value, dtype=np.float32))

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One operator with one output."""
        name = f"{operator.lower()}_{self._named_nodes}"
        self._named_nodes += 1
        self.nodes.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name

    def either(self, condition: str, then: str, otherwise: str, keep: Sequence[str] = ()) -> str:
        """`then` where the one boolean of `condition` is true, else `otherwise`: results of float32 that are there.

        The steps that only one of the two needs are done only when it is asked for. `keep`: results that others are
        still to read.
        """
        branches = []
        for wanted, other in ((then, otherwise), (otherwise, then)):
            only = self._steps_to([wanted]) - self._steps_to([condition, other, *keep])
            branches.append((wanted, [node for number, node in enumerate(self.nodes) if number in only]))
        moved = {id(node) for _, nodes in branches for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in moved]
        then_branch, else_branch = (self._branch(wanted, nodes) for wanted, nodes in branches)
        return self.node("If", condition, then_branch=then_branch, else_branch=else_branch)

    def _steps_to(self, results: Sequence[str]) -> set[int]:
        """Numbers of the nodes that results need."""
        needed, found = set(results), set()
        for number in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[number]
            if needed.intersection(node.output):
                needed.update(inputs_of(node))
                found.add(number)
        return found

    def _branch(self, result: str, nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
        name = f"{result}_or"
        end = helper.make_node("Identity", [result], [name])
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([*nodes, end], name, [], [value])

    def model(
        self, probabilities: str, quantiles: str, text_buckets: int, numeric: int, doc: str = ""
    ) -> onnx.ModelProto:
        """The graph with the inputs and outputs of a length model; not yet marked by `describe`.

        `quantiles`: empty for a graph without that output.
        """
        outputs = [self._named(probabilities, "probabilities", ["N", K])]
        if quantiles:
            outputs.append(self._named(quantiles, "quantiles", ["N", len(LEVELS)]))
        graph = helper.make_graph(
            self.nodes,
            "length",
            [
                helper.make_tensor_value_info("text", TensorProto.FLOAT, ["N", text_buckets]),
                helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["N", numeric]),
            ],
            outputs,
            list(self.constants.values()),
            doc_string=doc,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, producer_name="paceline", opset_imports=opsets)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model

    def _named(self, result: str, name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
        self.nodes.append(helper.make_node("Identity", [result], [name]))
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def inputs_of(node: onnx.NodeProto) -> set[str]:
    """What a node reads, by its branches too."""
    read = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                read |= inputs_of(inner)
    return read


@dataclass(frozen=True, slots=True)
class TextFrontEnd:
    """Hashed counts to a few components: sqrt(count) * idf, rows of length 1, then a linear map.

    The root damps repeated words about as the usual logarithm does, for a tenth of its time.
    """

    idf: Float32
    """float32[TEXT_BUCKETS]; 0 for a bucket never seen in training."""
    projection: Float32
    """float32[TEXT_BUCKETS, C]."""

    @property
    def components(self) -> int:
        return int(self.projection.shape[1])

    def transform(self, text: Float32) -> Float32:
        """What the graph computes: float32[N, C] from raw counts float32[N, TEXT_BUCKETS]."""
        return np.asarray(weighted_text(text, self.idf) @ self.projection, dtype=np.float32)

    def add_to(self, graph: GraphBuilder, text: str) -> str:
        """The nodes of `transform`, without a pass over the long rows that can be had from a product."""
        projection = graph.constant("projection", self.idf[:, None] * self.projection)
        product = graph.node("MatMul", graph.node("Sqrt", text), projection)
        square = graph.node("MatMul", text, graph.constant("idf_squared", (self.idf**2)[:, None]))
        norm = graph.node("Max", graph.node("Sqrt", square), graph.scalar(MIN_NORM))
        return graph.node("Div", product, norm)


MIN_NORM = 1e-6
"""What the norm of a text is at least: that of an empty one is 0."""


def weighted_text(text: Float32, idf: Float32) -> Float32:
    """Rows of length 1 (or 0 for an empty text), float32[N, TEXT_BUCKETS]."""
    weighted = np.sqrt(text) * idf
    norm = np.sqrt((weighted * weighted).sum(axis=1, keepdims=True))
    return np.asarray(weighted / np.maximum(norm, np.float32(MIN_NORM)), dtype=np.float32)


def document_weights(text: Float32, weights: NDArray[np.float64] | None = None) -> Float32:
    """Smoothed inverse document frequencies, float32[TEXT_BUCKETS]; 0 where no text had the bucket."""
    w = np.ones(len(text)) if weights is None else weights
    found = w @ (text > 0)
    idf = np.log((1 + w.sum()) / (1 + found)) + 1
    return np.where(found > 0, idf, 0.0).astype(np.float32)


def fit_text(
    text: Float32, components: int, seed: int = 0, weights: NDArray[np.float64] | None = None
) -> TextFrontEnd:
    """Latent semantic analysis of the training texts (give each prompt once): idf and the leading components."""
    idf = document_weights(text, weights)
    rows = csr_matrix(weighted_text(text, idf))
    rank = max(1, min(components, rows.shape[0] - 1, rows.shape[1] - 1))
    svd = TruncatedSVD(rank, n_iter=7, random_state=seed).fit(rows)
    projection = np.zeros((text.shape[1], components), dtype=np.float32)
    projection[:, :rank] = svd.components_.T
    return TextFrontEnd(idf, projection)


def normalised(graph: GraphBuilder, masses: str) -> str:
    """Rows of sum 1 from rows of masses that are not negative and not all zero."""
    total = graph.node("ReduceSum", masses, graph.integers(1), keepdims=1)
    return graph.node("Div", masses, total)


def quantile_nodes(graph: GraphBuilder, probabilities: str) -> str:
    """[N, 3] lengths at LEVELS from bin masses [N, K]: the bins below the level, and of the bin that reaches it a part.

    A sum over all bins of the part that lies below: fewer nodes than to search for the bin, and nodes cost.
    """
    deep = graph.node("Unsqueeze", probabilities, graph.integers(1))
    below = graph.node("CumSum", deep, graph.constant("axis_2", np.asarray(2, dtype=np.int64)), exclusive=1)
    levels = graph.constant("levels", np.asarray(LEVELS, dtype=np.float32)[None, :, None])
    left = graph.node("Sub", levels, below)
    share = graph.node("Div", left, graph.node("Max", deep, graph.scalar(1e-9)))
    inside = graph.node("Clip", share, graph.scalar(0.0), graph.scalar(1.0))
    parts = graph.node("Mul", inside, graph.constant("width", _UPPER - _LOWER))
    length = graph.node("ReduceSum", parts, graph.integers(2), keepdims=0)
    return graph.node("Max", length, graph.scalar(1.0))


def describe(
    model: onnx.ModelProto,
    kind: str,
    features_version: str,
    offsets: Mapping[str, object],
    card: Mapping[str, object],
) -> onnx.ModelProto:
    """A copy with the metadata the service reads; the version is the hash of graph, features and offsets."""
    described = onnx.ModelProto()
    described.CopyFrom(model)
    offsets_json = json.dumps(offsets, sort_keys=True)
    content = hashlib.sha256()
    for part in (
        model.SerializeToString(deterministic=True),
        features_version.encode(),
        offsets_json.encode(),
    ):
        content.update(hashlib.sha256(part).digest())
    helper.set_model_props(
        described,
        {
            "paceline.kind": kind,
            "paceline.version": f"{kind}-{content.hexdigest()[:12]}",
            "paceline.features": features_version,
            "paceline.edges": json.dumps(EDGES.tolist()),
            "paceline.offsets": offsets_json,
            "paceline.card": json.dumps(card, sort_keys=True),
        },
    )
    return described


def offsets_in(model: onnx.ModelProto) -> dict[str, Any]:
    """The offsets that `describe` wrote; empty without."""
    found = {prop.key: prop.value for prop in model.metadata_props}
    return dict(json.loads(found.get("paceline.offsets", "{}")))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """The model in onnxruntime, on one thread as in service."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answer(runner: ort.InferenceSession, text: Float32, numeric: Float32) -> tuple[Float32, Float32]:
    """`probabilities` [N, K] and quantiles [N, 3]: the graph's own, or read from the masses where it gives none."""
    given = {"text": text, "numeric": numeric}
    if any(output.name == "quantiles" for output in runner.get_outputs()):
        probabilities, quantiles = runner.run(["probabilities", "quantiles"], given)
        return np.asarray(probabilities), np.asarray(quantiles)
    probabilities = np.asarray(runner.run(["probabilities"], given)[0])
    cdf = np.cumsum(probabilities, axis=1, dtype=np.float64)
    nothing, unlimited = np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)
    found = [quantile(cdf, level, nothing, unlimited) for level in LEVELS]
    return probabilities, np.stack(found, axis=1).astype(np.float32)


def check(model: onnx.ModelProto, rows: int = 16, seed: int = 0) -> None:
    """Run the graph in onnxruntime on empty, ordinary and absurd features. Raises GraphError."""
    runner = session(model)
    shapes = {given.name: given.shape[1] for given in runner.get_inputs()}
    if set(shapes) != {"text", "numeric"}:
        raise GraphError(f"inputs are {sorted(shapes)}, not numeric and text")
    random = np.random.default_rng(seed)
    text = random.poisson(0.1, (rows, shapes["text"])).astype(np.float32)
    numeric = random.normal(0, 10, (rows, shapes["numeric"])).astype(np.float32)
    text[0], numeric[0] = 0, 0
    text[1], numeric[1] = 1e6, 1e9
    probabilities, quantiles = answer(runner, text, numeric)
    sums = probabilities.sum(axis=1)
    if probabilities.shape != (rows, K) or quantiles.shape != (rows, len(LEVELS)):
        raise GraphError(f"outputs have shapes {probabilities.shape} and {quantiles.shape}")
    if not np.isfinite(probabilities).all() or (probabilities < 0).any() or (abs(sums - 1) > 1e-4).any():
        raise GraphError("rows of masses are not distributions")
    if not np.isfinite(quantiles).all() or (np.diff(quantiles, axis=1) < 0).any():
        raise GraphError("quantiles are not in order")
