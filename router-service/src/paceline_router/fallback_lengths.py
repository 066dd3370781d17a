"""The router's own idea of output lengths, for when the predictor is down."""

import math

from paceline.common.v1 import estimate_pb2
from paceline_core.histogram import LengthHistograms


class FallbackHistograms:
    """The same learner as the predictor's default, fed with this router's own outcomes."""

    def __init__(self) -> None:
        self._histograms = LengthHistograms()

    def estimate(self, model: str, app: str) -> estimate_pb2.LengthEstimate:
        """What was seen of this app, else of the model, else the prior."""
        return estimate_pb2.LengthEstimate(
            probabilities=self._histograms.probabilities(model, app).tolist(),
            model_version="router",
            source="fallback",
        )

    def learn(self, model: str, app: str, output_tokens: int, censored: bool) -> None:
        """An answer ended after so many tokens; censored: it was cut there."""
        # Nobody asks this learner how well its P90 held, and to work one out costs ten times the learning itself.
        self._histograms.observe(model, app, output_tokens, censored=censored, declared_p90=math.inf)
