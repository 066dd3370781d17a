"""A length model of a few weights, with the signature and the metadata of a trained one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paceline_core.histogram import HistogramParams, prior
from paceline_core.lengths import EDGES, K
from paceline_predictor.features import FEATURES_VERSION, NUMERIC, TEXT_BUCKETS


def tiny_length_model(
    path: Path,
    *,
    version: str = "tiny-1",
    kind: str = "qrf",
    seed: int = 0,
    median_tokens: float = 180.0,
    offsets: Mapping[str, Any] | None = None,
    meta: Mapping[str, str] | None = None,
    broken_above_temperature: float = 1e9,
    bins: int = K,
    text: str = "text",
) -> Path:
    """Write it: a log-normal, tilted a little by each feature.

    `broken_above_temperature`: questions with a higher temperature get NaN for an answer. `meta` overrides metadata.
    """
    random = np.random.default_rng(seed)
    mass = prior(HistogramParams(prior_median_tokens=median_tokens))[:bins]
    temperature = np.zeros((len(NUMERIC), 1), dtype=np.float32)
    temperature[NUMERIC.index("temperature")] = -1.0
    constants = {
        "bias": np.log(np.resize(mass, bins) + 1e-6).astype(np.float32),
        "by_word": random.normal(0, 0.01, (TEXT_BUCKETS, bins)).astype(np.float32),
        "by_number": random.normal(0, 0.02, (len(NUMERIC), bins)).astype(np.float32),
        "minus_temperature": temperature,
        "limit": np.float32(broken_above_temperature),
        "zero": np.float32(0),
        "one": np.float32(1),
        "three": np.array([3], dtype=np.int64),
        "none": np.array([0], dtype=np.int64),
        "columns": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Add", [text, "one"], ["more"]),
        helper.make_node("Log", ["more"], ["logs"]),
        helper.make_node("MatMul", ["logs", "by_word"], ["words"]),
        helper.make_node("MatMul", ["numeric", "by_number"], ["numbers"]),
        helper.make_node("Add", ["words", "numbers"], ["tilt"]),
        helper.make_node("Add", ["tilt", "bias"], ["logits"]),
        helper.make_node("MatMul", ["numeric", "minus_temperature"], ["cold"]),
        helper.make_node("Add", ["cold", "limit"], ["room"]),
        helper.make_node("Min", ["room", "zero"], ["over"]),
        helper.make_node("Sqrt", ["over"], ["nan_when_over"]),
        helper.make_node("Add", ["logits", "nan_when_over"], ["all"]),
        helper.make_node("Softmax", ["all"], ["probabilities"], axis=1),
        helper.make_node("Slice", ["probabilities", "none", "three", "columns"], ["quantiles"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(text, TensorProto.FLOAT, ["N", TEXT_BUCKETS]),
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["N", len(NUMERIC)]),
        ],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", bins]),
            helper.make_tensor_value_info("quantiles", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    props = {
        "paceline.kind": kind,
        "paceline.version": version,
        "paceline.features": FEATURES_VERSION,
        "paceline.edges": json.dumps(EDGES.tolist()),
        "paceline.offsets": json.dumps(dict(offsets or {})),
        "paceline.card": "{}",
    }
    helper.set_model_props(model, {**props, **(meta or {})})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
