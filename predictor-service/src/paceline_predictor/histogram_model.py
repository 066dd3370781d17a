"""The length model that needs no training: decayed histograms of outcomes per (model, app)."""

from collections.abc import Callable, Sequence

from paceline_core.histogram import HistogramParams, LengthHistograms
from paceline_predictor.model import (
    Bases,
    LengthAnswers,
    LengthQuestion,
    ModelReport,
    Outcome,
    no_bases,
)

VERSION = "histogram-1"

_MIN_COVERAGE_P90 = 0.8
"""Below it P90 is said to be too small. Above 0.9 is no fault: an answer that max_tokens cuts is always within it."""


class HistogramModel:
    """A `LengthModel` and `KeptState` over `paceline_core.histogram`."""

    def __init__(self, params: HistogramParams | None = None) -> None:
        self._params = params or HistogramParams()
        self._histograms = LengthHistograms(self._params)

    def bases(self, questions: Sequence[LengthQuestion]) -> Bases:
        """Nothing: all that is known comes from the past."""
        return no_bases(len(questions), VERSION)

    def answers(self, questions: Sequence[LengthQuestion], bases: Bases) -> LengthAnswers:
        """Answer all questions, in order: "histogram" once an answer of the model was seen, before that "prior"."""
        learned = self._histograms
        return LengthAnswers(
            learned.probabilities_of([(question.model, question.app) for question in questions]),
            ["histogram" if learned.observed_of(question.model) else "prior" for question in questions],
            [learned.coverage_p90(question.model, question.app) for question in questions],
            [bases.version] * len(questions),
        )

    def learn(self, outcomes: Sequence[Outcome], bases: Bases) -> int:
        """Learn; an answer that was cut before its first token holds nothing to learn."""
        return sum(self._learn(outcome) for outcome in outcomes)

    def _learn(self, outcome: Outcome) -> bool:
        if outcome.censored and outcome.output_tokens < 1:
            return False
        question = outcome.question
        self._histograms.observe(
            question.model,
            question.app,
            outcome.output_tokens,
            censored=outcome.censored,
            declared_p90=outcome.declared_p90,
            max_tokens=question.max_tokens,
        )
        return True

    def report(self) -> ModelReport:
        """Warns when P90 covers much less than it says."""
        coverage = self._histograms.coverage_p90()
        low = 0 < coverage < _MIN_COVERAGE_P90
        warning = f"P90 covers only {coverage:.0%} of the last outcomes" if low else ""
        return ModelReport(
            "length-histograms", VERSION, "histogram", self._histograms.observed, coverage, warning
        )

    def snapshot(self) -> Callable[[], bytes]:
        """All counts."""
        return self._histograms.snapshot()

    def decoded(self, state: bytes) -> Callable[[], None]:
        """Saved counts. Raises ValueError when they are damaged or of another version."""
        histograms = LengthHistograms.from_bytes(state, self._params)

        def take_over() -> None:
            self._histograms = histograms

        return take_over
