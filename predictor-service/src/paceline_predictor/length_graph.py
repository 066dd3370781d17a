"""The length model in an ONNX file: what the file must hold, and how it is asked.

Inputs `text` float32[N, TEXT_BUCKETS] and `numeric` float32[N, F] as `features` makes them; output `probabilities`
float32[N, K]: bin masses of the whole length of a typical model's answer. Who wrote the file, for which features and
bins, stands in its metadata (`paceline.*`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline_core.calibration.offset import ShippedOffsets
from paceline_core.lengths import EDGES, FloatArray, K
from paceline_predictor.features import FEATURES_VERSION, NUMERIC, TEXT_BUCKETS, Features, features
from paceline_predictor.model import LengthQuestion
from paceline_predictor.onnx_file import ModelFileError, open_session, run_session

KINDS = ("qrf", "moe", "mixture")
MAX_VERSION_CHARS = 64
MAX_OFFSETS = 16_384
"""Models, and apps of models, whose offset a file may bring."""

_SUM_TOLERANCE = 1e-2
_SAME_ALONE = 1e-4
_INPUTS = {"text": TEXT_BUCKETS, "numeric": len(NUMERIC)}
_TRIED_QUESTIONS = (
    LengthQuestion("", ""),
    LengthQuestion("m", "chat", prompt_head="Why is the sky blue? Answer briefly.", prompt_tokens=12),
    LengthQuestion("m", "code", prompt_head="def f(x):\n" * 300, prompt_tail="return x", max_tokens=512),
    LengthQuestion("m", "chat", prompt_head="Tell", generated_tokens=200, output_tail="1. one\n2. two\n3."),
)


@dataclass(frozen=True, slots=True)
class LengthGraph:
    """A file that was found good, ready to be asked. Any thread may ask."""

    kind: str
    version: str
    file_bytes: int
    offsets: ShippedOffsets
    session: Any = field(repr=False)

    def masses(self, given: Features) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Bin masses float64[N, K], and which rows are distributions bool[N]; the others are all zero.

        Raises ModelFileError when the graph fails as a whole.
        """
        (found,) = run_session(
            self.session, ["probabilities"], {"text": given.text, "numeric": given.numeric}
        )
        masses = found.astype(np.float64)
        if masses.shape != (len(given.text), K):
            raise ModelFileError(f"the graph answers with shape {masses.shape}")
        sums = np.add.reduce(masses, axis=1)  # not finite when one of its terms is not
        good = np.abs(sums - 1) <= _SUM_TOLERANCE
        if np.minimum.reduce(masses, axis=None, initial=0.0) >= 0 and good.all():
            return masses, good
        good &= masses.min(axis=1, initial=0.0) >= -1e-6
        return np.where(good[:, None], np.maximum(masses, 0.0), 0.0), good


def opened(content: bytes) -> LengthGraph:
    """The graph in a file's bytes, after it was run on a few questions. Raises ModelFileError with what is wrong."""
    session = open_session(content)
    try:
        _check_signature(session)
        meta = dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError:
        raise ModelFileError("a name or the metadata is no text: the file is damaged") from None
    graph = LengthGraph(
        kind=_kind(meta),
        version=_version(meta),
        file_bytes=len(content),
        offsets=_offsets(meta),
        session=session,
    )
    _check_bins_and_features(meta)
    _check_answers(graph)
    return graph


def _check_signature(session: Any) -> None:
    inputs = {one.name: one for one in session.get_inputs()}
    if set(inputs) != set(_INPUTS):
        raise ModelFileError(f"the graph takes {_listed(inputs)}, not {_listed(_INPUTS)}")
    for name, width in _INPUTS.items():
        _check_tensor(inputs[name], width)
    outputs = {one.name: one for one in session.get_outputs()}
    if "probabilities" not in outputs:
        raise ModelFileError(f"the graph gives {_listed(outputs)}, and no probabilities")
    _check_tensor(outputs["probabilities"], K)


def _check_tensor(tensor: Any, width: int) -> None:
    shape = list(tensor.shape)
    # The first dimension is free; an output's width may be left open in the file, and is checked by running it.
    fits = len(shape) == 2 and not isinstance(shape[0], int) and (shape[1] == width or _open(shape[1]))
    if tensor.type != "tensor(float)" or not fits:
        raise ModelFileError(f"{tensor.name} is {tensor.type}{shape}, not tensor(float)[N, {width}]")


def _open(dimension: Any) -> bool:
    return not isinstance(dimension, int)


def _kind(meta: Mapping[str, str]) -> str:
    kind = meta.get("paceline.kind", "")
    if kind not in KINDS:
        raise ModelFileError(f"paceline.kind is {kind[:40]!r}, not one of {_listed(KINDS)}")
    return kind


def _version(meta: Mapping[str, str]) -> str:
    version = meta.get("paceline.version", "")
    if not version or len(version) > MAX_VERSION_CHARS or not version.isprintable():
        raise ModelFileError(f"paceline.version must be 1 to {MAX_VERSION_CHARS} printable characters")
    return version


def _check_bins_and_features(meta: Mapping[str, str]) -> None:
    made_for = meta.get("paceline.features", "")
    if made_for != FEATURES_VERSION:
        raise ModelFileError(f"made for features {made_for[:40]!r}; this predictor has {FEATURES_VERSION!r}")
    if _json(meta, "paceline.edges") != EDGES.tolist():
        raise ModelFileError("made for other length bins")


def _offsets(meta: Mapping[str, str]) -> ShippedOffsets:
    found = _json(meta, "paceline.offsets") if "paceline.offsets" in meta else {}
    if not isinstance(found, dict):
        raise ModelFileError("paceline.offsets must be an object")
    try:
        offsets = ShippedOffsets.parse(found)
    except ValueError as error:
        raise ModelFileError(f"paceline.offsets: {error}") from None
    if len(offsets.models) + len(offsets.pairs) > MAX_OFFSETS:
        raise ModelFileError(f"paceline.offsets holds more than {MAX_OFFSETS} offsets")
    return offsets


def _check_answers(graph: LengthGraph) -> None:
    asked = features(_TRIED_QUESTIONS)
    together, good = graph.masses(asked)
    if not good.all():
        raise ModelFileError("the graph's answers are no distributions")
    for row in range(len(together)):
        alone, _ = graph.masses(Features(asked.text[row : row + 1], asked.numeric[row : row + 1]))
        if np.abs(alone[0] - together[row]).max() > _SAME_ALONE:
            raise ModelFileError("the graph's answer to a question depends on the other questions")


def _json(meta: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(meta.get(key, ""))
    except ValueError:
        raise ModelFileError(f"{key} is no JSON") from None


def _listed(names: Any) -> str:
    return ", ".join(sorted(str(name)[:40] for name in names)) or "nothing"
