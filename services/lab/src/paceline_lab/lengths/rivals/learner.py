"""What every model of lengths is to the evaluation."""

from collections.abc import Sequence
from typing import Protocol

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.example import Example
from paceline_predictor.model import LengthQuestion


class LengthLearner(Protocol):
    """Learns from examples, answers with bin masses."""

    @property
    def name(self) -> str:
        """How reports call it."""

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from scratch; what was learned before is forgotten."""

    def predict(self, questions: Sequence[LengthQuestion]) -> FloatArray:
        """Bin masses float64[N, K] of the whole length. For known models their offset is applied already."""
