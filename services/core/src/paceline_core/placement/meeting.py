"""P(meet): the chance that a request is in time, from its length distribution and the times of an engine."""

import math
from typing import Final

import numpy as np

from paceline_core import lengths
from paceline_core.placement.view import Floats, RequestView

_EDGES: Final = np.concatenate([[0.0], lengths.UPPER])
_FIRST_SPREAD: Final = 0.25
"""Error of a predicted first token, as a share of it."""
_TBT_SPREAD: Final = 0.1


class LengthChance:
    """P(at most x more tokens come) of one request, for arrays of x. Made once per decision.

    Predicted times are off by some share, so the distribution is smeared by a bin (24 % of the length) to both sides:
    a length known exactly then still leaves doubt near the deadline.
    """

    def __init__(self, request: RequestView) -> None:
        cdf = np.where(request.max_tokens <= lengths.UPPER, 1.0, request.length_cdf)
        smeared = 0.5 * cdf
        smeared[1:] += 0.25 * cdf[:-1]
        smeared[:-1] += 0.25 * cdf[1:]
        smeared[-1] += 0.25
        self._cdf = np.concatenate([[0.0], smeared])
        self._out = float(request.replayed_tokens)
        self._seen = float(np.interp(self._out, _EDGES, self._cdf)) if self._out else 0.0

    def within(self, tokens: Floats) -> Floats:
        """float64 of the same shape; 0 where fewer than one token fits."""
        reached = np.interp(tokens + self._out, _EDGES, self._cdf)
        chance = (reached - self._seen) / max(1.0 - self._seen, 1e-9)
        return np.asarray(chance * (tokens >= 1.0))


def p_meet(
    request: RequestView,
    lengths_within: LengthChance,
    start_ms: Floats,
    prefill_ms: Floats,
    step_ms: Floats,
    tokens: Floats,
) -> Floats:
    """float64 of the shape of its arguments: times until and of the prefill, of a step, and the tokens that the request
    can write until it is due (read for deadlines only)."""
    if math.isfinite(request.left_ms):
        return lengths_within.within(tokens)
    if math.isfinite(request.first_left_ms):
        first = start_ms + prefill_ms + step_ms
        in_time = np.log(max(request.first_left_ms, 1e-3) / np.maximum(first, 1e-3)) / _FIRST_SPREAD
        fluent = (request.slo.tbt_ms - step_ms) / (_TBT_SPREAD * request.slo.tbt_ms)
        return _logistic(1.7 * in_time) * _logistic(fluent)
    return np.ones(len(start_ms))


def _logistic(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-x, -50.0, 50.0))))
