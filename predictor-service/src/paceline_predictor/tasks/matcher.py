"""The matcher in its ONNX file: what it needs, what it answers."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from paceline_core.tasks.params import SHARES
from paceline_core.tasks.pattern import A, P, PartialBatch, PatternTable, table_of
from paceline_predictor.onnx_file import ModelFileError, open_session, run_session

_KIND = "tasks"
_INPUTS = {
    "values": ("tensor(float)", [None, P, A]),
    "known": ("tensor(float)", [None, P, A]),
    "actors": ("tensor(int64)", [None, P]),
    "stages": ("tensor(float)", [None]),
    "running": ("tensor(float)", [None]),
    "done_critical": ("tensor(float)", [None]),
    "out": ("tensor(float)", [None, 3]),
    "apps": ("tensor(int64)", [None]),
    "pattern_cells": ("tensor(uint8)", [None, P, A + 1]),
    "pattern_stages": ("tensor(float)", [None]),
    "pattern_apps": ("tensor(int64)", [None]),
    "pattern_weights": ("tensor(float)", [None]),
    "levels": ("tensor(float)", [None, None]),
    "sharpness": ("tensor(float)", [None]),
}
_OUTPUTS = (
    "summary",
    "tokens",
    "critical_tokens",
    "shares",
    "coming",
    "coming_probability",
    "nearest",
    "mass",
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Matches:
    """Answers for B partial tasks; see `paceline_core.tasks.matching.Forecasts`."""

    summary: Floats
    """float32[B, 4]: remaining stages, remaining calls, last-stage probability, similarity."""
    tokens: Floats
    critical_tokens: Floats
    shares: Floats
    coming: Floats
    coming_probability: Floats
    nearest: NDArray[np.int64]
    """int64[B, n]: places in the table, the `shipped` patterns of the file first."""
    mass: Floats


class TaskMatcher:
    """A matcher file that was opened. `run` may be called from several threads."""

    def __init__(self, content: bytes) -> None:
        """Raises ModelFileError when the bytes are no matcher of this version."""
        self._session = open_session(content)
        meta = self._session.get_modelmeta().custom_metadata_map
        if meta.get("paceline.kind") != _KIND:
            raise ModelFileError("not a task matcher")
        self.version = meta.get("paceline.version", "")
        self.file_bytes = len(content)
        if not self.version or not meta.get("paceline.shipped", "").isdigit():
            raise ModelFileError("the file does not say its version and its patterns")
        self.shipped = int(meta["paceline.shipped"])
        self.card = _card(meta.get("paceline.card", "{}"))
        """What it was made of."""
        _check(self._session)
        # A file that opens may still not run: it answers once before anybody depends on it.
        empty = PartialBatch(
            *(np.zeros((1, P, A), dtype=np.float32),) * 2,
            np.zeros((1, P), dtype=np.int64),
            *(np.zeros(1, dtype=np.float32),) * 3,
            np.zeros((1, 3), dtype=np.float32),
            np.zeros(1, dtype=np.int64),
        )
        found = self.run(
            empty, table_of([]), np.full((1, 2), 0.5, dtype=np.float32), np.ones(1, dtype=np.float32)
        )
        if found.shares.shape != (1, SHARES) or not np.isfinite(found.critical_tokens).all():
            raise ModelFileError("the graph does not answer as a task matcher does")

    def run(self, batch: PartialBatch, patterns: PatternTable, levels: Floats, sharpness: Floats) -> Matches:
        """Forecast all tasks at once; `levels` is float32[B, Q], in (0, 1), `sharpness` float32[B].

        Raises ModelFileError when the graph fails.
        """
        inputs = {name: getattr(batch, name) for name in PartialBatch.__slots__}
        inputs |= {
            "pattern_cells": patterns.cells,
            "pattern_stages": patterns.stages,
            "pattern_apps": patterns.apps,
            "pattern_weights": patterns.weights,
            "levels": levels,
            "sharpness": sharpness,
        }
        return Matches(*run_session(self._session, list(_OUTPUTS), inputs))


def _card(text: str) -> dict[str, Any]:
    try:
        card = json.loads(text)
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise ModelFileError("the file's card cannot be read")
    return card


def _check(session: onnxruntime.InferenceSession) -> None:
    inputs = {
        x.name: (x.type, [d if isinstance(d, int) else None for d in x.shape]) for x in session.get_inputs()
    }
    if inputs != _INPUTS:
        wrong = sorted({*inputs, *_INPUTS} - {k for k, v in inputs.items() if _INPUTS.get(k) == v})
        raise ModelFileError(f"the graph's inputs are not a task matcher's: {', '.join(wrong)}")
    missing = set(_OUTPUTS) - {x.name for x in session.get_outputs()}
    if missing:
        raise ModelFileError(f"the graph lacks outputs: {', '.join(sorted(missing))}")
