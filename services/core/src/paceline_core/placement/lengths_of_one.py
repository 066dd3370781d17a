"""The mean length of one request, fast: a decision asks it once, and arrays of one row cost what a thousand rows do."""

from bisect import bisect_left, bisect_right
from typing import Final

from paceline_core.lengths import LOWER, OPEN_EDGE, UPPER, FloatArray

_WIDTH: Final = UPPER - LOWER
_UPPER: Final = UPPER.tolist()
_LOWER: Final = LOWER.tolist()


def mean(cdf: FloatArray, generated: int, max_tokens: int) -> float:
    """Mean length given that more than `generated` tokens come, clipped at `max_tokens`: what `lengths.mean` gives.

    It is `generated` + E[min(L, m) - g | L > g] = g + (R(g) - R(m)) / P(L > g), with R(x) = E[(L - x)+], the sum of the
    survival function over the whole lengths from x on; inside a bin that is a line.
    """
    out, limit = (
        min(float(generated), OPEN_EDGE - 1.0),
        min(max(float(max_tokens), generated + 1.0), OPEN_EDGE),
    )
    first, last = bisect_right(_UPPER, out), bisect_left(_UPPER, limit)
    alive = 1.0 - cdf
    before_first, before_last = _before(cdf, first), _before(cdf, last)
    share = (out - _LOWER[first]) / (_UPPER[first] - _LOWER[first])
    here = before_first + share * (float(alive[first]) - before_first)
    if here <= 1e-12:
        return float(generated + 1)
    if first == last:
        return float(generated + _sum(here, float(alive[first]), out, limit, _UPPER[first]) / here)
    total = _sum(here, float(alive[first]), out, _UPPER[first], _UPPER[first])
    total += _sum(before_last, float(alive[last]), _LOWER[last], limit, _UPPER[last])
    if last - first > 1:
        inner = slice(first + 1, last)
        total += float(((alive[first : last - 1] + alive[inner]) * (_WIDTH[inner] / 2)).sum())
        total += float(alive[first] - alive[last - 1]) / 2
    return float(generated + total / here)


def _before(cdf: FloatArray, k: int) -> float:
    return 1.0 - float(cdf[k - 1]) if k else 1.0


def _sum(at_start: float, at_end: float, start: float, stop: float, end: float) -> float:
    """Survival summed over start, start + 1, ..., stop - 1, falling in a line from `at_start` at `start` to `at_end` at
    `end`."""
    steps = stop - start
    slope = (at_end - at_start) / (end - start)
    return steps * at_start + slope * steps * (steps - 1.0) / 2
