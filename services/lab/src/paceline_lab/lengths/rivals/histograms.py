"""Histograms of what was seen, whatever is asked: the simplest rivals, and what deployed systems do."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from paceline_core.histogram import HistogramParams, prior
from paceline_core.lengths import FloatArray
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import model_offsets, offsets_of, served_offsets, shifted, standardised
from paceline_lab.lengths.rivals.masses import counted, pooled
from paceline_predictor.model import LengthQuestion

_CONCENTRATION: Final = 8.0


class GlobalHistogram:
    """One histogram of all answers, shifted by the offset of the model that is asked about."""

    name = "global histogram"

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        self._offsets = model_offsets(examples)
        self._served = served_offsets(examples, self._offsets)
        self._masses = _histogram(standardised(examples, self._offsets), [0] * len(examples), 1, _root())

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K]."""
        same = np.repeat(self._masses, len(questions), axis=0)
        return shifted(same, offsets_of(self._served, questions))


class AppHistogram:
    """A histogram of each app, whichever model answered, backing off to all answers: what deployed systems keep."""

    name = "per-app histogram"

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        apps = [example.question.app for example in examples]
        self._row_of = {app: i for i, app in enumerate(sorted(set(apps)))}
        all_answers = _histogram(examples, [0] * len(examples), 1, _root())
        parents = np.repeat(all_answers, len(self._row_of), axis=0)
        by_app = _histogram(examples, [self._row_of[app] for app in apps], len(parents), parents)
        self._masses = np.concatenate([by_app, all_answers])

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K]."""
        unknown = len(self._row_of)
        return np.asarray(self._masses[[self._row_of.get(question.app, unknown) for question in questions]])


class PairHistogram:
    """A histogram of each (model, app), backing off to the model's, then to that of all answers."""

    name = "histogram of model and app"

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch."""
        models = [example.question.model for example in examples]
        pairs = [(example.question.model, example.question.app) for example in examples]
        self._model_row = {model: i for i, model in enumerate(sorted(set(models)))}
        self._pair_row = {pair: i for i, pair in enumerate(sorted(set(pairs)))}
        fleet = _histogram(examples, [0] * len(examples), 1, _root())
        parents = np.repeat(fleet, len(self._model_row), axis=0)
        by_model = _histogram(examples, [self._model_row[m] for m in models], len(parents), parents)
        parents = by_model[[self._model_row[model] for model, _ in self._pair_row]]
        by_pair = _histogram(examples, [self._pair_row[p] for p in pairs], len(parents), parents)
        self._masses = np.concatenate([by_pair, by_model, fleet])

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K]."""
        return np.asarray(self._masses[[self._row(question) for question in questions]])

    def _row(self, question: LengthQuestion) -> int:
        """The row of the most particular histogram there is."""
        if (pair := self._pair_row.get((question.model, question.app))) is not None:
            return pair
        model = self._model_row.get(question.model, len(self._model_row))
        return len(self._pair_row) + model


def _root() -> FloatArray:
    return prior(HistogramParams())[None, :]


def _histogram(examples: Sequence[Example], rows: Sequence[int], n: int, parents: FloatArray) -> FloatArray:
    counts = counted(
        np.array([example.output_tokens for example in examples], dtype=np.float64),
        np.array([example.censored for example in examples], dtype=np.bool_),
        np.array([example.weight for example in examples]) / np.mean([e.weight for e in examples]),
        np.array(rows, dtype=np.int64),
        n,
    )
    return pooled(counts, parents, _CONCENTRATION)
