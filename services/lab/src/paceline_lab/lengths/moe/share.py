"""How much of a mixture of two length models should be the first: fitted on prompts that neither has seen.

The ranked probability score of `share * first + (1 - share) * second` is a parabola in the share, so its best value has
a closed form: with gaps G_i = F_i - goal at the edges, share = sum w (G_2 (G_2 - G_1)) / sum w (G_1 - G_2)^2.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from paceline_lab.lengths.design import raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.graph import answer, session
from paceline_lab.lengths.moe.bins import EDGE_WEIGHTS, Array
from paceline_lab.lengths.moe.learner import targets_of
from paceline_lab.lengths.moe.loss import Targets, given_cdfs, goal_cdfs, known_edges
from paceline_lab.lengths.offsets import Offsets
from paceline_lab.lengths.splits import fold_of

Fit = Callable[[Sequence[Example]], onnx.ModelProto]

_CHUNK_ROWS = 256


def best_share(first: Array, second: Array, targets: Targets, weights: NDArray[np.float64]) -> float:
    """The share of `first` in 0..1 with the least weighted score, for masses [N, K] of both.

    Edges above a censoring are not scored. Two models that say the same: 0.5.
    """
    goals = goal_cdfs(first, targets)
    gap_1 = given_cdfs(first, targets) - goals
    gap_2 = given_cdfs(second, targets) - goals
    scale = weights[:, None] * EDGE_WEIGHTS * known_edges(targets)
    apart = float((scale * (gap_1 - gap_2) ** 2).sum())
    if apart < 1e-12:
        return 0.5
    return float(np.clip((scale * gap_2 * (gap_2 - gap_1)).sum() / apart, 0.0, 1.0))


def held_out_share(
    examples: Sequence[Example], offsets: Offsets, fit_first: Fit, fit_second: Fit, folds: int = 4
) -> float:
    """The best share on one fold of the prompts, with both models fitted on the others.

    0.5 where there is nothing to fit on or to judge by.
    """
    fold = [fold_of(example.prompt_id, folds, seed=31) for example in examples]
    inside = [example for example, k in zip(examples, fold, strict=True) if k != 0]
    judged = [example for example, k in zip(examples, fold, strict=True) if k == 0]
    if not inside or not judged:
        return 0.5
    raw = raw_features([example.question for example in judged])
    masses = [_answers(fit(inside), raw.text, raw.numeric) for fit in (fit_first, fit_second)]
    weights = np.array([example.weight for example in judged])
    return best_share(masses[0], masses[1], targets_of(judged, offsets), weights)


def _answers(model: onnx.ModelProto, text: csr_matrix, numeric: NDArray[np.float32]) -> Array:
    runner = session(model)
    found = []
    for begin in range(0, len(numeric), _CHUNK_ROWS):
        rows = slice(begin, begin + _CHUNK_ROWS)
        found.append(answer(runner, text[rows].toarray(), numeric[rows])[0].astype(np.float64))
    return np.concatenate(found)
