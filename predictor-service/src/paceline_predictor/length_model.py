"""The length model in use: a file's graph says what a question is worth knowing, the online learner the rest.

    question -> features -> graph of the file = base         (`bases`: costly, knows nothing of the past)
    base, (model, app) -> offset, mixture with the running histogram, recalibration = answer     (`answers`, `learn`)

Without a file, or where its answer is no distribution, the running histogram of (model, app) answers alone.
"""

import logging
import struct
from collections.abc import Callable, Sequence

import numpy as np

from paceline_core.calibration.offset import NO_OFFSETS, ShippedOffsets
from paceline_core.calibration.online import CalibrationParams, OnlineLengths
from paceline_core.lengths import OPEN_EDGE, conditioned
from paceline_predictor.features import features
from paceline_predictor.length_file import LengthFile
from paceline_predictor.length_graph import LengthGraph
from paceline_predictor.length_report import model_report
from paceline_predictor.model import (
    Bases,
    LengthAnswers,
    LengthQuestion,
    ModelReport,
    Outcome,
    no_bases,
)
from paceline_predictor.onnx_file import ModelFileError

_log = logging.getLogger(__name__)

HISTOGRAM_VERSION = "histogram-1"
"""Stands in answers that no model file had a part in."""
_UNKNOWN = (np.nan, np.nan, np.nan)
_HEAD = struct.Struct("<4sH")
_MAGIC = b"PLM1"


class FileLengths:
    """A `LengthModel` and `KeptState` over a model file and `paceline_core.calibration`."""

    def __init__(
        self,
        file: LengthFile,
        params: CalibrationParams | None = None,
        *,
        count_invalid: Callable[[str, int], None] = lambda kind, rows: None,
    ) -> None:
        """`count_invalid` hears of answers of the file, by its kind, that were no distribution; on the event loop."""
        self._file = file
        self._params = params or CalibrationParams()
        self._count_invalid = count_invalid
        self._graph: LengthGraph | None = None
        self._online = OnlineLengths(self._params)
        self._failing = ""

    def bases(self, questions: Sequence[LengthQuestion]) -> Bases:
        """The graph's answers."""
        graph = self._file.graph
        if graph is None:
            return no_bases(len(questions), HISTOGRAM_VERSION)
        try:
            masses, good = graph.masses(features(questions))
        except ModelFileError as error:
            if self._failing != graph.version:
                self._failing = graph.version
                _log.warning("length model", extra={"problem": str(error), "model_version": graph.version})
            nothing = no_bases(len(questions), graph.version)
            return Bases(graph.version, graph.kind, nothing.masses, nothing.good)
        return Bases(graph.version, graph.kind, masses, good)

    def answers(self, questions: Sequence[LengthQuestion], bases: Bases) -> LengthAnswers:
        """The bases, as outcomes have corrected them, given what is out and what the limit is."""
        self._follow_file()
        keys = [(question.model, question.app) for question in questions]
        generated = np.array([question.generated_tokens for question in questions], dtype=np.float64)
        limits = np.array([question.max_tokens or OPEN_EDGE for question in questions], dtype=np.float64)
        refined = self._online.refine(bases.masses, keys, generated, usable=bases.good)
        if bases.kind == "histogram":
            sources = ["histogram" if self._online.observed_of(model) else "prior" for model, _ in keys]
        else:
            self._count_bad_rows(bases)
            sources = ["histogram" if carried else bases.kind for carried in refined.from_histogram.tolist()]
        return LengthAnswers(
            conditioned(refined.probabilities, generated, limits),
            sources,
            refined.coverage_p90.tolist(),
            [bases.version] * len(questions),
        )

    def learn(self, outcomes: Sequence[Outcome], bases: Bases) -> int:
        """Learn, in order. An answer that was cut before its next token holds nothing."""
        self._follow_file()
        told = [
            row
            for row, one in enumerate(outcomes)
            if one.output_tokens > one.question.generated_tokens
            or not (one.censored or one.question.generated_tokens)
        ]
        if not told:
            return 0
        picked = [outcomes[row] for row in told]
        self._online.observe(
            bases.masses[told],
            [(one.question.model, one.question.app) for one in picked],
            np.array([one.question.generated_tokens for one in picked], dtype=np.float64),
            np.array([max(1, one.output_tokens) for one in picked], dtype=np.float64),
            np.array([one.censored for one in picked], dtype=np.bool_),
            np.array([one.question.max_tokens for one in picked], dtype=np.float64),
            np.array([one.declared or _UNKNOWN for one in picked], dtype=np.float64),
            usable=bases.good[told],
        )
        return len(told)

    def report(self) -> ModelReport:
        """Coverage, bias and drift of late; warns when the file is not in use, or answers are off."""
        self._follow_file()
        return model_report(self._online, self._graph, self._file.warning, HISTOGRAM_VERSION)

    def snapshot(self) -> Callable[[], bytes]:
        """All that was learned, and on which file."""
        self._follow_file()
        encode, version = self._online.snapshot(), self._version
        return lambda: _with_version(version, encode())

    def decoded(self, state: bytes) -> Callable[[], None]:
        """A saved state. What was learned about another file than the one in use now is left out of it."""
        version, learned = _version_of(state)
        graph = self._file.graph
        online = OnlineLengths.from_bytes(learned, self._params, _offsets(graph))

        def take_over() -> None:
            self._follow_file()
            self._online = online
            if graph is not self._graph or version != self._version:
                self._online.change_base(_offsets(self._graph))

        return take_over

    @property
    def _version(self) -> str:
        return HISTOGRAM_VERSION if self._graph is None else self._graph.version

    def _follow_file(self) -> None:
        """What was learned about another file's answers is forgotten; the histograms stay."""
        graph = self._file.graph
        if graph is self._graph:
            return
        before, self._graph = self._version, graph
        if self._version != before:
            self._online.change_base(_offsets(graph))

    def _count_bad_rows(self, bases: Bases) -> None:
        bad = int(np.count_nonzero(~bases.good))
        if bad:
            self._count_invalid(bases.kind, bad)


def _offsets(graph: LengthGraph | None) -> ShippedOffsets:
    return NO_OFFSETS if graph is None else graph.offsets


def _with_version(version: str, learned: bytes) -> bytes:
    name = version.encode()
    return _HEAD.pack(_MAGIC, len(name)) + name + learned


def _version_of(state: bytes) -> tuple[str, bytes]:
    """The file's version, and the learner's own state. Raises ValueError."""
    if state[:4] == b"PLH1":
        raise ValueError("it is of an earlier version, which learned histograms alone")
    if len(state) < _HEAD.size or state[:4] != _MAGIC:
        raise ValueError("not a saved state of lengths, or of another version")
    size = _HEAD.unpack_from(state)[1]
    return state[_HEAD.size : _HEAD.size + size].decode(errors="replace"), state[_HEAD.size + size :]
