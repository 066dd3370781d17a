"""The forest as a learner that answers through the graph that ships."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.graph import answer, check, describe, offsets_in, session
from paceline_lab.lengths.offsets import Offsets, model_offsets, offsets_of, shifted
from paceline_lab.lengths.qrf.fitting import QrfParams, fit_graph
from paceline_lab.lengths.qrf.inputs import training_rows
from paceline_predictor.features import FEATURES_VERSION, features
from paceline_predictor.model import LengthQuestion

_CHUNK_ROWS = 256


def fit_qrf(
    examples: Sequence[Example],
    params: QrfParams | None = None,
    offsets: Offsets | None = None,
    card: Mapping[str, object] | None = None,
) -> onnx.ModelProto:
    """A checked model file of kind "qrf" from examples, questions of answers in progress among them.

    `offsets`: of models (None: estimated from the arrivals among the examples). Give lengths uncut where they are
    known: the forest reads no limits. Raises ValueError without examples.
    """
    if not examples:
        raise ValueError("no examples to learn from")
    of_models = model_offsets(examples) if offsets is None else offsets
    graph = fit_graph(training_rows(examples, of_models), params or QrfParams())
    model = describe(graph, "qrf", FEATURES_VERSION, of_models, card or {})
    check(model)
    return model


class QrfLearner:
    """LengthLearner of the forest."""

    name = "qrf"

    def __init__(self, params: QrfParams | None = None) -> None:
        self.params = params or QrfParams()
        self.model: onnx.ModelProto | None = None
        self._runner: ort.InferenceSession | None = None
        self._offsets: Offsets = {}

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        self.model = fit_qrf(examples, self.params)
        self._offsets = offsets_in(self.model)
        self._runner = session(self.model)

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K], offsets of known models applied. Raises ValueError before `fit`."""
        if self._runner is None:
            raise ValueError("fit comes first")
        masses = []
        for begin in range(0, len(questions), _CHUNK_ROWS):
            given = features(questions[begin : begin + _CHUNK_ROWS])
            masses.append(answer(self._runner, given.text, given.numeric)[0].astype(np.float64))
        return shifted(np.concatenate(masses), offsets_of(self._offsets, questions))
