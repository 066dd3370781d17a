"""The mixture of experts as a learner that answers through the graph that ships."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.design import raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.graph import answer, check, describe, session
from paceline_lab.lengths.moe.loss import Targets
from paceline_lab.lengths.moe.model import MixtureOfExperts, fit_inputs
from paceline_lab.lengths.moe.training import MoeParams, Sample, train
from paceline_lab.lengths.offsets import Offsets, model_offsets, offsets_of, shifted
from paceline_lab.lengths.splits import fold_of
from paceline_predictor.features import FEATURES_VERSION, features
from paceline_predictor.model import LengthQuestion

_CHUNK_ROWS = 256


def fit_moe(
    examples: Sequence[Example],
    seed: int = 0,
    offsets: Offsets | None = None,
    card: Mapping[str, object] | None = None,
    params: MoeParams | None = None,
) -> onnx.ModelProto:
    """A checked model file of kind "moe" from examples, questions of answers in progress among them.

    `offsets`: of models (None: estimated from the arrivals among the examples). Raises ValueError without examples.
    """
    of_models = model_offsets(examples) if offsets is None else offsets
    fitted = fit(examples, of_models, params or MoeParams(), seed)
    model = describe(fitted.graph(), "moe", FEATURES_VERSION, of_models, card or {})
    check(model)
    return model


def fit(examples: Sequence[Example], offsets: Offsets, params: MoeParams, seed: int) -> MixtureOfExperts:
    """The fitted networks. Deterministic. Raises ValueError without examples.

    The declared limit, the temperature and the app's name are blanked: in the training sets they say which set it is.
    What never varies gets no weight, so in service they say nothing to the networks.
    """
    if not examples:
        raise ValueError("no examples to learn from")
    raw = raw_features(
        [dataclasses.replace(e.question, app="", max_tokens=0, temperature=0.0) for e in examples]
    )
    weight = np.array([e.weight for e in examples])
    prompts = [e.prompt_id for e in examples]
    rows_of = Counter(prompts)
    documents = np.array([1 / rows_of[prompt] for prompt in prompts])
    fold = np.array([fold_of(prompt, params.folds, seed=23) for prompt in prompts])
    targets = targets_of(examples, offsets)
    families = tuple(sorted({e.family for e in examples}))
    family = np.array([families.index(e.family) for e in examples])
    inputs, rows = fit_inputs(raw, _goals(targets, family, weight), weight, documents, fold, params, seed)
    sample = Sample(
        inputs=rows,
        words=inputs.words,
        targets=targets,
        family=family,
        weight=(weight / weight.mean()).astype(np.float32),
        fold=fold,
    )
    members = tuple(train(sample, len(families), params, seed, held_out=m) for m in range(params.members))
    return MixtureOfExperts(inputs, families, members)


def targets_of(examples: Sequence[Example], offsets: Offsets) -> Targets:
    """What is known of the lengths, as a typical model would have answered: times exp(-offset)."""
    factor = np.exp(-offsets_of(offsets, [e.question for e in examples]))
    return Targets(
        lengths=np.array([max(1, e.output_tokens) for e in examples]) * factor,
        censored=np.array([e.censored for e in examples]),
        generated=np.array([e.question.generated_tokens for e in examples]) * factor,
    )


def _goals(targets: Targets, family: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """What words should tell, float64[N, 2]: the log length, and by how much it differs from its family's mean."""
    logs = np.log(targets.lengths)
    mean = np.bincount(family, weights=weight * logs) / np.maximum(np.bincount(family, weights=weight), 1e-12)
    return np.stack([logs, logs - mean[family]], axis=1)


class MoeLearner:
    """LengthLearner of the mixture of experts."""

    name = "moe"

    def __init__(self, params: MoeParams | None = None, seed: int = 0) -> None:
        self.params, self.seed = params or MoeParams(), seed
        self.model: onnx.ModelProto | None = None
        self._runner: ort.InferenceSession | None = None
        self._offsets: Offsets = {}

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        self._offsets = model_offsets(examples)
        self.model = fit_moe(examples, self.seed, self._offsets, params=self.params)
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
