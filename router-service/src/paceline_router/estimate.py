"""A length estimate with what the router reads from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paceline.common.v1 import estimate_pb2
from paceline_core import lengths


@dataclass(frozen=True)
class Estimate:
    """The distribution as it travels (`message`), and its CDF as policies read it."""

    message: estimate_pb2.LengthEstimate
    p50: float
    p90: float

    @classmethod
    def of(cls, message: estimate_pb2.LengthEstimate, max_tokens: int) -> "Estimate":
        """Raises ValueError when the bins are not a distribution."""
        cdf = lengths.cdf_from_probabilities(np.array(message.probabilities, dtype=np.float64))
        limit, out = np.array([float(max_tokens)]), np.array([float(message.generated_tokens)])
        return cls(
            message,
            float(lengths.quantile(cdf, 0.5, out, limit)[0]),
            float(lengths.quantile(cdf, 0.9, out, limit)[0]),
        )

    @classmethod
    def many(
        cls, messages: Sequence[estimate_pb2.LengthEstimate], max_tokens: Sequence[int]
    ) -> "list[Estimate] | None":
        """The same for a batch, in one go; None when any of them is not a distribution."""
        try:
            rows = np.array([message.probabilities for message in messages], dtype=np.float64)
            cdf = lengths.cdf_from_probabilities(rows)
        except ValueError:
            return None
        limit = np.array(max_tokens, dtype=np.float64)
        out = np.array([message.generated_tokens for message in messages], dtype=np.float64)
        p50 = lengths.quantile(cdf, 0.5, out, limit).tolist()
        p90 = lengths.quantile(cdf, 0.9, out, limit).tolist()
        return [cls(*values) for values in zip(messages, p50, p90, strict=True)]

    @property
    def source(self) -> str:
        """Who made it: "fallback" when the predictor is down."""
        return self.message.source

    @property
    def cdf(self) -> lengths.FloatArray:
        """CDF at the bin edges, float64[K]. Computed anew: a live request keeps the small message only."""
        cdf: lengths.FloatArray = lengths.cdf_from_probabilities(
            np.array(self.message.probabilities, dtype=np.float64)
        )[0]
        return cdf

    def p_longer(self, tokens: int) -> float:
        """P(L > tokens), given what was out when it was made."""
        ends = np.array(
            [self.message.generated_tokens, max(tokens, self.message.generated_tokens)], np.float64
        )
        out, past = 1.0 - lengths.cdf_at(np.repeat(self.cdf[None, :], 2, axis=0), ends)
        return float(past / max(out, 1e-9))

    @cached_property
    def median_tokens(self) -> int:
        """P50, whole tokens."""
        return round(self.p50)
