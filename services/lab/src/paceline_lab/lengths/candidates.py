"""The models that may ship: fitted from examples, answered through the ONNX graphs that would ship."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from paceline_core.lengths import FloatArray, K
from paceline_lab.lengths.dataset import Example, with_progress
from paceline_lab.lengths.ensemble.boosted import BoostedParams
from paceline_lab.lengths.ensemble.boosted import fit as fit_boosted
from paceline_lab.lengths.ensemble.marginal import marginal
from paceline_lab.lengths.graph import answer, check, describe, session
from paceline_lab.lengths.mixture import Hedge, Part, mixture_graph
from paceline_lab.lengths.moe.learner import fit_moe
from paceline_lab.lengths.moe.training import MoeParams
from paceline_lab.lengths.offsets import Offsets, model_offsets, offsets_of, served_offsets, shifted
from paceline_lab.lengths.qrf.fitting import QrfParams
from paceline_lab.lengths.qrf.learner import fit_qrf
from paceline_predictor.features import FEATURES_VERSION, features
from paceline_predictor.model import LengthQuestion

CANDIDATES = ("qrf", "moe", "mixture")
"""Kinds of models, in the order of reports."""
KNOWN_SHARES = (0.3, 0.3, 0.4)
"""Shares of forest, experts and boosted quantiles for known apps; on held-out prompts the loss is flat around them."""
OTHER_SHARES = (0.5, 0.5, 0.0)
"""The same for other apps, which boosting is worst at, and for answers in progress, which it has not learned."""
SHARPENING = 1.15
"""Exponent of the mixture for known apps, by held-out prompts; beyond 1.3 it costs."""
HEDGE = 0.5
"""Share of the distribution of all answers where the app is not known: how long its answers are is a matter of style
that the wording of its questions does not tell. By sources left out in turn, where the loss is least from 0.4 to 0.6
for some, lower still with more for two (short answers to questions like those with long ones), and flat for one.
"""
QRF_PARAMS = QrfParams(trees=32, progress_trees=15)
"""Fewer trees than the forest has by itself, so that a mixture stays under 10 MB."""
MOE_PARAMS = MoeParams()
BOOSTED_PARAMS = BoostedParams()
_CHUNK_ROWS = 256


@dataclass(frozen=True)
class Candidate:
    """A fitted model and the offsets of the models it was trained on."""

    kind: str
    model: onnx.ModelProto
    offsets: Offsets
    runner: ort.InferenceSession

    def base(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K] of a typical model's answers."""
        found = [np.empty((0, K))]
        for begin in range(0, len(questions), _CHUNK_ROWS):
            given = features(questions[begin : begin + _CHUNK_ROWS])
            found.append(answer(self.runner, given.text, given.numeric)[0].astype(np.float64))
        return np.concatenate(found)

    def with_offsets(self, base: FloatArray, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Base masses [N, K] moved to where the known models among the questions are."""
        return shifted(base, offsets_of(self.offsets, questions))

    def answer(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K], offsets of known models applied."""
        return self.with_offsets(self.base(questions), questions)


def fit_candidates(
    examples: Sequence[Example],
    seed: int,
    kinds: Sequence[str] = CANDIDATES,
    card: Mapping[str, object] | None = None,
) -> dict[str, Candidate]:
    """Candidates of the named kinds, from examples of whole answers. Deterministic."""
    offsets = model_offsets(examples)
    served = served_offsets(examples, offsets)
    rows = [*examples, *with_progress(examples, seed=seed)]
    graphs: dict[str, onnx.ModelProto] = {}
    if "qrf" in kinds or "mixture" in kinds:
        graphs["qrf"] = fit_qrf(rows, dataclasses.replace(QRF_PARAMS, seed=seed), offsets)
    if "moe" in kinds or "mixture" in kinds:
        graphs["moe"] = fit_moe(rows, seed, offsets, params=MOE_PARAMS)
    if "mixture" in kinds:
        boosted = fit_boosted(examples, offsets, dataclasses.replace(BOOSTED_PARAMS, seed=seed))
        models = (graphs["qrf"], graphs["moe"], boosted.graph())
        parts = [Part(*part) for part in zip(models, KNOWN_SHARES, OTHER_SHARES, strict=True)]
        hedge = Hedge(marginal(examples, offsets), HEDGE)
        graphs["mixture"] = mixture_graph(parts, boosted.apps.tolist(), SHARPENING, hedge)
    found = {}
    for kind in kinds:
        graph = graphs[kind]
        del graph.metadata_props[:]
        # Lengths were divided by one kind of offset; answers are shifted by another.
        model = describe(graph, kind, FEATURES_VERSION, served, card or {})
        check(model)
        found[kind] = Candidate(kind, model, served, session(model))
    return found
