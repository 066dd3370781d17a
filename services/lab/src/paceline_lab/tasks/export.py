"""Writes the matcher as an ONNX graph: the formulas of `paceline_core.tasks.matching`, in float32.

Patterns are inputs, so what a deployment learns needs no new file; parameters and the patterns of the training tasks
("shipped") are in the file.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paceline_core.tasks import params as limits
from paceline_core.tasks.matching import NO_MATCH
from paceline_core.tasks.params import GRID_POINTS, GRID_STEP, NEAREST, SHARES, MatcherParams
from paceline_core.tasks.pattern import (
    ACTOR_POINTS,
    CRITICAL,
    FIRST,
    INPUT,
    LOG_OF_BYTE,
    MODEL_CALLS,
    OUTPUT,
    PAST,
    TOOL_MS,
    A,
    P,
    PatternTable,
)

_OPSET = 17
_IR = 8
_FLOAT, _INT, _BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
_INPUTS = (
    ("values", _FLOAT, ["B", P, A]),
    ("known", _FLOAT, ["B", P, A]),
    ("actors", _INT, ["B", P]),
    ("stages", _FLOAT, ["B"]),
    ("running", _FLOAT, ["B"]),
    ("done_critical", _FLOAT, ["B"]),
    ("out", _FLOAT, ["B", 3]),
    ("apps", _INT, ["B"]),
    ("pattern_cells", _BYTE, ["M", P, A + 1]),
    ("pattern_stages", _FLOAT, ["M"]),
    ("pattern_apps", _INT, ["M"]),
    ("pattern_weights", _FLOAT, ["M"]),
    ("levels", _FLOAT, ["B", "Q"]),
    ("sharpness", _FLOAT, ["B"]),
)
_OUTPUTS = (
    ("summary", _FLOAT, ["B", 4]),
    ("tokens", _FLOAT, ["B", "Q"]),
    ("critical_tokens", _FLOAT, ["B", "Q"]),
    ("shares", _FLOAT, ["B", SHARES]),
    ("coming", _FLOAT, ["B", SHARES, 4]),
    ("coming_probability", _FLOAT, ["B", SHARES]),
    ("nearest", _INT, ["B", "N"]),
    ("mass", _FLOAT, ["B", "N"]),
)


def matcher(params: MatcherParams, shipped: PatternTable, card: dict[str, object]) -> bytes:
    """The model file. Raises ValueError without shipped patterns: the graph needs something to look at."""
    if not len(shipped):
        raise ValueError("a matcher ships with at least one pattern")
    graph = _Writer()
    _write(graph, params, shipped)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "paceline-tasks",
            [helper.make_tensor_value_info(*value) for value in _INPUTS],
            [helper.make_tensor_value_info(*value) for value in _OUTPUTS],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
        producer_name="paceline",
    )
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    helper.set_model_props(
        model,
        {
            "paceline.kind": "tasks",
            "paceline.version": f"tasks-{digest[:12]}",
            "paceline.shipped": str(len(shipped)),
            "paceline.params": json.dumps(params.as_json()),
            "paceline.card": json.dumps(card),
        },
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


class _Writer:
    """Nodes and constants; an operator returns the name of its first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[bytes, str] = {}

    def constant(self, value: object, kind: type[np.generic] = np.float32) -> str:
        array = np.asarray(value, dtype=kind)
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self._names:
            self._names[key] = f"c{len(self._names)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def op(self, kind: str, *inputs: str | float, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Numbers among the inputs become float constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        out = [name or f"n{len(self.nodes)}", *(f"n{len(self.nodes)}.{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, names, out, **attributes))
        return out[0]

    def axes(self, *numbers: int) -> str:
        return self.constant(numbers, np.int64)

    def expand(self, x: str, *axes: int) -> str:
        return self.op("Unsqueeze", x, self.axes(*axes))

    def total(self, x: str, *axes: int, keep: int = 0) -> str:
        return self.op("ReduceSum", x, self.axes(*axes), keepdims=keep)

    def number(self, x: str) -> str:
        return self.op("Cast", x, to=_FLOAT)

    def part(self, x: str, axis: int, start: int, end: int) -> str:
        return self.op("Slice", x, self.axes(start), self.axes(end), self.axes(axis))

    def at(self, x: str, axis: int, index: int) -> str:
        return self.op("Gather", x, self.constant(index, np.int64), axis=axis)

    def expm1(self, x: str) -> str:
        return self.op("Sub", self.op("Exp", x), 1.0)

    def log1p(self, x: str) -> str:
        return self.op("Log", self.op("Add", x, 1.0))

    def bounded(self, x: str, low: float, high: float) -> str:
        return self.op("Clip", x, low, high)

    def normal_cdf(self, z: str) -> str:
        z = self.bounded(z, -8.0, 8.0)
        cubic = self.op("Mul", z, self.op("Add", self.op("Mul", self.op("Mul", z, z), 0.044715), 1.0))
        return self.op("Sigmoid", self.op("Mul", cubic, 2.0 * math.sqrt(2.0 / math.pi)))


def _write(g: _Writer, params: MatcherParams, shipped: PatternTable) -> None:
    cells = g.op("Concat", g.constant(shipped.cells, np.uint8), "pattern_cells", axis=0)
    lengths = g.op("Concat", g.constant(shipped.stages), "pattern_stages", axis=0)
    apps = g.op("Concat", g.constant(shipped.apps, np.int64), "pattern_apps", axis=0)
    counts = g.op("Concat", g.constant(shipped.weights), "pattern_weights", axis=0)
    codes = g.op("Cast", g.op("Squeeze", g.part(cells, 2, A, A + 1), g.axes(2)), to=_INT)
    logs = g.op("Mul", g.number(g.part(cells, 2, 0, A)), g.constant(LOG_OF_BYTE))

    total, effective = _distance(g, params, logs, codes)
    named = g.op("Greater", "apps", g.constant(0, np.int64))
    own_all = g.op("And", g.op("Equal", g.expand(apps, 0), g.expand("apps", 1)), g.expand(named, 1))
    n = g.op("Shape", lengths)
    counts = g.op("Max", counts, 1e-9)
    strange = g.number(g.op("Not", own_all))
    others = g.op("MatMul", strange, g.expand(counts, 1))
    cost = g.op("Add", g.op("Log", g.op("Max", others, 1e-9)), params.other_app_cost)
    logits = g.op("Sub", g.expand(g.op("Log", counts), 0), g.op("Mul", strange, cost))
    grown = g.op("Mul", g.op("Pow", effective, params.growth - 1.0), 0.5)
    half = g.op("Mul", total, g.op("Mul", grown, g.expand("sharpness", 1)))
    long_enough = g.op("GreaterOrEqual", g.expand(lengths, 0), g.expand("stages", 1))

    def group_least(group: str) -> str:
        least = g.op("Where", g.op("And", group, long_enough), half, -NO_MATCH)
        least = g.op("ReduceMin", least, axes=[1], keepdims=1)
        return g.op("Where", g.op("Less", least, -NO_MATCH / 2), least, 0.0)

    least = g.op("Where", own_all, group_least(own_all), group_least(g.op("Not", own_all)))
    logits = g.op("Add", g.op("Sub", logits, half), g.op("Mul", least, 1.0 - params.unlikeness))
    logits = g.op("Where", long_enough, logits, NO_MATCH)

    k = g.op("Min", n, g.constant([NEAREST], np.int64))
    g.op("TopK", logits, k, name="chosen", outputs=2, axis=1)
    nearest = g.op("Identity", g.nodes[-1].output[1], name="nearest")
    alive_b = g.op("Greater", "chosen", NO_MATCH / 2)
    alive = g.number(alive_b)
    behind = g.op("Add", g.op("Mul", g.expand("stages", 1), 0.0), -params.background_cost)
    mixed = g.op("Softmax", g.op("Concat", "chosen", behind, axis=1), axis=1)
    mass = g.op("Slice", mixed, g.axes(0), g.axes(-1), g.axes(1), name="mass")
    background = g.op("Slice", mixed, g.axes(-1), g.axes(2**31), g.axes(1))

    values = g.expm1(g.op("Gather", logs, nearest, axis=0))
    stages = g.op("Gather", lengths, nearest, axis=0)
    own = g.op("GatherElements", own_all, nearest, axis=1)
    by_name = {x: g.at(values, 3, x) for x in (MODEL_CALLS, INPUT, OUTPUT, CRITICAL, TOOL_MS)}

    seen = "stages"
    current = g.op("Sub", seen, "running")
    first, past = g.constant(FIRST), g.constant(PAST)
    end = g.op("Min", past, g.expand(stages, 2))
    later = g.op("Relu", g.op("Sub", end, g.op("Max", first, g.expand(seen, 1, 2))))
    before = g.op("Relu", g.op("Sub", g.op("Min", past, g.expand(current, 1, 2)), first))
    slots = g.op("Add", g.expand(current, 1), g.constant(np.arange(SHARES)))
    wide = g.expand(slots, 2)
    at = g.op("And", g.op("GreaterOrEqual", wide, first), g.op("Less", wide, past))
    at = g.op("Transpose", g.number(at), perm=[0, 2, 1])
    exists = g.number(g.op("Less", g.expand(slots, 1), g.expand(stages, 2)))
    exists = g.op("Mul", exists, g.expand(alive, 2))
    of_slots = {x: g.op("Mul", g.op("MatMul", v, at), exists) for x, v in by_name.items()}

    def rest(attribute: int, column: int) -> tuple[str, str]:
        whole = g.at(of_slots[attribute], 2, 0)
        least = g.op("Mul", whole, 0.0 if attribute == MODEL_CALLS else limits.MIN_REST)
        now = g.op("Max", g.op("Sub", whole, g.part("out", 1, column, column + 1)), least)
        now = g.op("Mul", now, g.expand("running", 1))
        return now, g.total(g.op("Mul", later, by_name[attribute]), 2)

    calls_left = g.op("Add", *rest(MODEL_CALLS, 0))
    tokens_left = g.op("Add", *rest(OUTPUT, 1))
    critical_now, critical_later = rest(CRITICAL, 2)
    critical = g.op("Add", critical_now, critical_later)

    to_come = g.op("Mul", g.op("Relu", g.op("Sub", stages, g.expand(current, 1))), alive)
    log_seen = g.log1p(seen)
    s0, s1 = params.background_stages
    bg_stages = g.op("Max", g.op("Exp", g.op("Add", g.op("Mul", log_seen, s1), s0)), 1.0)
    over = g.op("Equal", to_come, 0.0)
    over_n = g.number(over)
    last = g.op("Mul", g.number(g.op("Equal", stages, g.expand(seen, 1))), alive)
    ends = g.op("Mul", g.number(g.op("Greater", seen, 0.0)), params.background_end)
    ended = g.op("Mul", ends, g.op("Sub", 1.0, "running"))
    bg = g.op("Squeeze", background, g.axes(1))
    bg_left = g.op("Mul", bg, g.op("Sub", 1.0, ended))

    done = g.total(g.op("Mul", before, by_name[CRITICAL]), 2)
    log_done = g.log1p("done_critical")
    shift = g.bounded(g.op("Sub", g.expand(log_done, 1), g.log1p(done)), -limits.MAX_SHIFT, limits.MAX_SHIFT)
    carried = g.op("Div", current, g.op("Add", current, limits.CARRY_AFTER_STAGES))
    shift = g.op("Mul", shift, g.expand(g.op("Mul", carried, params.scale_carry), 1))
    a, b, c = params.background_log
    bg_log = g.op("Add", g.op("Add", g.op("Mul", log_done, b), g.op("Mul", log_seen, c)), a)
    inverse = g.op("Where", own, 1.0 / params.spread, 1.0 / params.other_spread)
    grid = g.constant(np.arange(GRID_POINTS) * GRID_STEP)

    def quantiles(amount: str, background_log: str, name: str) -> None:
        middle = g.op("Add", g.log1p(amount), shift)
        z = g.op("Mul", g.op("Sub", grid, g.expand(middle, 2)), g.expand(inverse, 2))
        cdf = g.op("Where", g.expand(over, 2), 1.0, g.normal_cdf(z))
        z = g.op("Mul", g.op("Sub", grid, g.expand(background_log, 1)), 1.0 / params.background_spread)
        open_end = g.expand(ended, 1)
        behind = g.op("Add", open_end, g.op("Mul", g.op("Sub", 1.0, open_end), g.normal_cdf(z)))
        # [B, 1, k] x [B, k, G]
        whole = g.op("Squeeze", g.op("MatMul", g.expand(mass, 1), cdf), g.axes(1))
        whole = g.op("Add", whole, g.op("Mul", background, behind))
        _quantile_of_grid(g, whole, name)

    quantiles(tokens_left, g.op("Add", bg_log, params.background_fanout_log), "tokens")
    quantiles(critical, bg_log, "critical_tokens")

    now = g.op(
        "Where", g.expand(g.op("Greater", "running", 0.0), 1), critical_now, g.at(of_slots[CRITICAL], 2, 0)
    )
    work = g.op("Concat", g.expand(now, 2), g.part(of_slots[CRITICAL], 2, 1, SHARES - 1), axis=2)
    share = g.op("Div", work, g.expand(g.op("Max", critical, 1e-9), 2))
    tail = g.op("Relu", g.op("Sub", 1.0, g.total(share, 2, keep=1)))
    each_share = g.op("Concat", share, tail, axis=2)
    left_mass = g.op("Mul", mass, g.op("Sub", 1.0, over_n))
    share = g.op("Squeeze", g.op("MatMul", g.expand(left_mass, 1), each_share), g.axes(1))
    up_to = g.op("Min", g.op("Div", g.constant(np.arange(1, SHARES)), g.expand(bg_stages, 1)), 1.0)
    one = g.op("Add", g.op("Mul", g.expand(bg_stages, 1), 0.0), 1.0)
    none = g.op("Sub", one, 1.0)
    even = g.op("Sub", g.op("Concat", up_to, one, axis=1), g.op("Concat", none, up_to, axis=1))
    share = g.op("Add", share, g.op("Mul", g.expand(bg_left, 1), even))
    share = g.op("Div", share, g.op("Max", g.total(share, 1, keep=1), 1e-12))
    first_shares = g.op("Concat", g.at(each_share, 2, 0), g.part(even, 1, 0, 1), axis=1)
    now_share = _median(g, first_shares, g.op("Concat", left_mass, g.expand(bg_left, 1), axis=1))
    later_shares = g.part(share, 1, 1, SHARES)
    scale = g.op("Max", g.total(later_shares, 1, keep=1), 1e-9)
    later_shares = g.op("Div", g.op("Mul", later_shares, g.op("Sub", 1.0, now_share)), scale)
    first_share = g.op("Sub", 1.0, g.total(later_shares, 1, keep=1))
    g.op("Concat", first_share, later_shares, name="shares", axis=1)

    weigh = g.expand(mass, 1)

    def mean(x: str) -> str:
        return g.op("Squeeze", g.op("MatMul", weigh, x), g.axes(1))

    probability = g.op("Identity", mean(exists), name="coming_probability")
    floor = g.op("Max", probability, 1e-9)
    columns = [
        g.expand(g.op("Div", mean(of_slots[x]), floor), 2) for x in (MODEL_CALLS, INPUT, CRITICAL, TOOL_MS)
    ]
    g.op("Concat", *columns, name="coming", axis=2)

    behind_stages = g.op("Mul", bg_left, bg_stages)
    best = g.part(nearest, 1, 0, 1)
    closeness = g.op("Div", g.op("GatherElements", total, best, axis=1), effective)
    similarity = g.op("Mul", g.op("Exp", g.op("Mul", closeness, -0.5)), g.part(alive, 1, 0, 1))
    summary = [
        g.expand(g.op("Add", g.total(g.op("Mul", mass, to_come), 1), behind_stages), 1),
        g.expand(g.op("Add", g.total(g.op("Mul", mass, calls_left), 1), behind_stages), 1),
        g.expand(g.op("Add", g.total(g.op("Mul", mass, last), 1), g.op("Mul", bg, ends)), 1),
        similarity,
    ]
    g.op("Concat", *summary, name="summary", axis=1)


def _distance(g: _Writer, params: MatcherParams, logs: str, codes: str) -> tuple[str, str]:
    """Summed distances [B, M] and E [B, 1]: squares are multiplied out, so that it is three matrix products."""
    seen = g.number(g.op("Less", g.constant(FIRST), g.expand("stages", 1)))
    back = g.op("Sub", g.op("Sub", g.total(seen, 1, keep=1), 1.0), g.constant(np.arange(P)))
    weight = g.op("Mul", g.op("Pow", params.recency, g.op("Relu", back)), seen)
    numeric = g.op("Mul", g.op("Mul", g.expand(weight, 2), "known"), g.constant(params.weights))
    code_known = g.number(g.op("Greater", "actors", g.constant(0, np.int64)))
    actor = g.expand(g.op("Mul", g.op("Mul", weight, code_known), params.actor_weight), 2)
    points = g.constant(ACTOR_POINTS)
    of_task = g.op("Concat", "values", g.op("Gather", points, "actors", axis=0), axis=2)
    of_pattern = g.op("Concat", logs, g.op("Gather", points, codes, axis=0), axis=2)
    dimensions = ACTOR_POINTS.shape[1]
    spread = g.op("Concat", numeric, *[actor] * dimensions, axis=2)
    flat = g.axes(0, P * (A + dimensions))
    w, q, m = (g.op("Reshape", x, flat) for x in (spread, of_task, of_pattern))
    wq = g.op("Mul", w, q)
    square = g.op("Gemm", w, g.op("Mul", m, m), transB=1)
    cross = g.op("Gemm", wq, m, transB=1)
    total = g.op("Sub", g.op("Add", g.total(g.op("Mul", wq, q), 1, keep=1), square), g.op("Mul", cross, 2.0))
    return g.op("Relu", total), g.op("Max", g.total(weight, 1, keep=1), 1e-6)


def _median(g: _Writer, values: str, weights: str) -> str:
    """Weighted medians of rows [B, 1]."""
    count = g.op("Slice", g.op("Shape", values), g.axes(1), g.axes(2), g.axes(0))
    ordered = g.op("TopK", values, count, outputs=2, axis=1, largest=0)
    order = g.nodes[-1].output[1]
    total = g.op("CumSum", g.op("GatherElements", weights, order, axis=1), g.constant(1, np.int64))
    half = g.op("Mul", g.total(weights, 1, keep=1), 0.5)
    before = g.op("Cast", g.op("Less", total, half), to=_INT)
    at = g.op("ReduceSum", before, g.axes(1), keepdims=1)
    # Sums in another order may differ in the last digit.
    at = g.op("Min", at, g.op("Sub", count, g.constant([1], np.int64)))
    return g.op("GatherElements", ordered, at, axis=1)


def _quantile_of_grid(g: _Writer, cdf: str, name: str) -> None:
    below_level = g.op("Less", g.expand(cdf, 1), g.expand("levels", 2))
    count = g.op("ReduceSum", g.op("Cast", below_level, to=_INT), g.axes(2), keepdims=0)
    above = g.op("Min", count, g.constant(GRID_POINTS - 1, np.int64))
    below = g.op("Max", g.op("Sub", above, g.constant(1, np.int64)), g.constant(0, np.int64))
    high = g.op("GatherElements", cdf, above, axis=1)
    low = g.op("GatherElements", cdf, below, axis=1)
    part = g.op("Div", g.op("Sub", "levels", low), g.op("Max", g.op("Sub", high, low), 1e-9))
    part = g.bounded(part, 0.0, 1.0)
    low_n, high_n = g.number(below), g.number(above)
    point = g.op("Add", low_n, g.op("Mul", part, g.op("Sub", high_n, low_n)))
    g.op("Identity", g.expm1(g.op("Mul", point, GRID_STEP)), name=name)
