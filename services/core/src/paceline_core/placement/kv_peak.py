"""The most KV that an engine will hold, if its requests go on as expected."""

import numpy as np

from paceline_core.placement.view import Floats


def future_peak_tokens(context_tokens: Floats, remaining_tokens: Floats) -> Floats:
    """float64[G]: largest sum of contexts from now on, of G engines with up to M sequences each (float64[G, M]; rows
    are padded with 0 in both).

    All sequences grow by one token a step and leave at their end, so the peak is reached just before one of them
    leaves: when those that are left longest, k of them, have grown by the k-th longest remaining length.
    """
    if not context_tokens.shape[1]:
        return np.zeros(len(context_tokens))
    order = np.argsort(-remaining_tokens, axis=1, kind="stable")
    left = np.take_along_axis(remaining_tokens, order, axis=1)
    held = np.cumsum(np.take_along_axis(context_tokens, order, axis=1), axis=1)
    alive = np.cumsum(left > 0, axis=1)
    return np.asarray((held + left * alive).max(axis=1))
