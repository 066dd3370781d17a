"""Training rows of a forest: sparse words, numbers, and responses with each model's offset taken out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import K
from paceline_lab.lengths.design import CsrMatrix, raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import Offsets, offsets_of
from paceline_lab.lengths.qrf.forest import Float32, Float64, spread
from paceline_lab.lengths.splits import fold_of


@dataclass(frozen=True, slots=True)
class Rows:
    """N training rows."""

    text: CsrMatrix
    """float32[N, TEXT_BUCKETS]: counts."""
    numeric: Float32
    """float32[N, F]"""
    responses: Float64
    """float64[N, 2 K]: histograms of the lengths that are known, then of those that were cut."""
    weights: Float64
    """float64[N]"""
    prompts: NDArray[np.str_]
    """Ids of the prompts: rows that cross-fitting must keep together."""
    families: NDArray[np.str_]
    """Kinds of task."""
    keys: Sequence[tuple[str, str]]
    """(model, app) that answered."""
    arrivals: NDArray[np.bool_]
    """Rows of questions without a token out."""

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, chosen: NDArray[np.int64]) -> "Rows":
        """The chosen rows, in that order."""
        return Rows(
            text=self.text[chosen],
            numeric=self.numeric[chosen],
            responses=self.responses[chosen],
            weights=self.weights[chosen],
            prompts=self.prompts[chosen],
            families=self.families[chosen],
            keys=[self.keys[row] for row in chosen.tolist()],
            arrivals=self.arrivals[chosen],
        )


def training_rows(examples: Sequence[Example], offsets: Offsets) -> Rows:
    """Rows of examples.

    The declared limit and the temperature are blanked: in the training sets they say which set it is. What never
    varies is never split on, so in service they say nothing to the forest. Half of the prompts keep their app's name,
    since live apps may have names that mean the same, or others.
    """
    questions = [
        dataclasses.replace(
            example.question,
            app=example.question.app if fold_of(example.prompt_id, 2, seed=41) else "",
            max_tokens=0,
            temperature=0.0,
        )
        for example in examples
    ]
    raw = raw_features(questions)
    logs = offsets_of(offsets, [example.question for example in examples])
    histograms = spread(
        np.array([max(1, e.output_tokens) for e in examples], dtype=np.float64), np.exp(-logs)
    )
    cut = np.array([example.censored for example in examples])
    responses = np.zeros((len(examples), 2 * K))
    responses[:, :K][~cut] = histograms[~cut]
    responses[:, K:][cut] = histograms[cut]
    return Rows(
        text=raw.text,
        numeric=raw.numeric,
        responses=responses,
        weights=np.array([example.weight for example in examples]),
        prompts=np.array([example.prompt_id for example in examples]),
        families=np.array([example.family for example in examples]),
        keys=[(example.question.model, example.question.app) for example in examples],
        arrivals=np.array([example.question.generated_tokens == 0 for example in examples]),
    )


def imputed(responses: Float64, weights: Float64) -> Float64:
    """Histograms float64[N, K]; a cut one is spread over what longer answers of all rows do (Kaplan-Meier)."""
    events, cut = responses[:, :K], responses[:, K:]
    masses = kaplan_meier(weights @ events, weights @ cut)
    above = np.cumsum(masses[::-1])[::-1] - masses
    # Row b: the distribution of a length that was cut in bin b.
    beyond = np.triu(np.tile(masses, (K, 1)), 1) / np.where(above > 0, above, 1.0)[:, None]
    beyond[above <= 0, -1] = 1.0
    return np.asarray(events + cut @ beyond)


def kaplan_meier(events: Float64, cut: Float64) -> Float64:
    """Bin masses float64[K] of events and cut ones float64[K]; what survives all bins ends in the last one."""
    at_risk = np.cumsum(events[::-1])[::-1] + np.cumsum(cut[::-1])[::-1] - cut
    hazard = np.minimum(events / np.maximum(at_risk, 1e-12), 1.0)
    hazard[-1] = 1.0
    before = np.concatenate([[1.0], np.cumprod(1 - hazard)[:-1]])
    return np.asarray(hazard * before)
