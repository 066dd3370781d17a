"""How long the matcher takes with a full library, and how large a pattern is."""

import time
from typing import Any

import numpy as np

from paceline_core.tasks.graph import Stages
from paceline_core.tasks.pattern import BYTES_A_PATTERN, PartialBatch, PatternTable, partials
from paceline_predictor.tasks.model import QUANTILES, TaskModel

PATTERNS = 500
BATCHES = (1, 32)


def timing(model: TaskModel, *, runs: int = 50) -> dict[str, Any]:
    """Milliseconds of the graph alone, and of a whole forecast, for 1 and 32 partial tasks against 500 patterns."""
    matcher = model.matcher
    if matcher is None:
        raise ValueError("a model without a matcher cannot be timed")
    table, _ = model.library.table()
    rows = np.resize(np.arange(len(table)), PATTERNS) if len(table) else np.zeros(0, dtype=np.int64)
    full = PatternTable(*(getattr(table, name)[rows] for name in PatternTable.__slots__))
    random = np.random.default_rng(0)
    result: dict[str, Any] = {"patterns": len(full), "bytes_a_pattern": _bytes_a_pattern()}
    for size in BATCHES:
        tasks = [("", _task(random)) for _ in range(size)]
        batch: PartialBatch = partials(tasks)
        levels = np.tile(np.array(QUANTILES, dtype=np.float32), (size, 1))
        sharpness = np.ones(size, dtype=np.float32)
        graph = _quantiles_ms(lambda b=batch, v=levels, w=sharpness: matcher.run(b, full, v, w), runs)
        whole = _quantiles_ms(lambda t=tasks: model.forecast_stages(t), runs // 2)
        result[f"batch{size}"] = {"graph_ms": graph, "forecast_ms": whole}
    return result


def _task(random: np.random.Generator) -> Stages:
    n = int(random.integers(2, 12))
    c = random.integers(1, 500, (6, n)).astype(np.float64)
    ones = np.ones(n, dtype=np.uint8)
    return Stages(c[0], c[1], c[2], c[3], c[4], c[5], ones, ones.astype(np.bool_))


def _quantiles_ms(call: Any, runs: int) -> dict[str, float]:
    for _ in range(10):
        call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 99)}


def _bytes_a_pattern() -> int:
    """In memory: cells, stage count, application, weight, id, checksum of the shape."""
    return BYTES_A_PATTERN + 4 + 8 + 8 + 8 + 4
