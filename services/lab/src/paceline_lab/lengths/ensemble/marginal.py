"""How long a typical model's answers are, whatever is asked: what an answer about the unknown leans on."""

from collections.abc import Sequence

import numpy as np

from paceline_core.histogram import HistogramParams, prior
from paceline_core.lengths import FloatArray
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import Offsets, standardised
from paceline_lab.lengths.rivals.masses import counted, pooled

_CONCENTRATION = 8.0


def marginal(examples: Sequence[Example], offsets: Offsets) -> FloatArray:
    """Bin masses float64[K] of the whole answers among the examples, each model's offset taken out."""
    whole = [example for example in examples if not example.question.generated_tokens]
    typical = standardised(whole, offsets)
    weights = np.array([example.weight for example in typical])
    counts = counted(
        np.array([example.output_tokens for example in typical], dtype=np.float64),
        np.array([example.censored for example in typical]),
        weights / weights.mean(),
        np.zeros(len(typical), dtype=np.int64),
        1,
    )
    masses = pooled(counts, prior(HistogramParams())[None, :], _CONCENTRATION)[0]
    return np.asarray(masses / masses.sum())
