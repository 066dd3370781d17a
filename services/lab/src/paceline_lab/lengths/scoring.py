"""How good distributions of length are: pinball loss, CRPS, coverage and width, with cut answers as what they are.

A length l is known to a unit cell (l-1, l]; in the logarithm it stands at log(l - 1/2). Where a limit is known only
what lies below it is scored, of cut answers and others alike, so that the scores stay proper: CRPS is integrated up to
the limit, and pinball compares min(length, limit) with min(quantile, limit). Where an answer was cut and no limit is
known the cut is its limit. Coverage is scored only where the declared bound lies below `max_tokens`, since a bound
clipped there covers trivially.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import (
    OPEN_EDGE,
    UPPER,
    FloatArray,
    cdf_from_probabilities,
    conditioned,
    quantile,
)
from paceline_lab.lengths.example import Example

LEVELS: Final = (0.5, 0.9, 0.95)
_LOW: Final = 0.1
_NODES: Final = np.log(np.concatenate([[0.25], UPPER]))
"""Log lengths at the borders of the bins, float64[K + 1]; the first bin's cell is (1/4, 1], its middle 1/2."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """Scores of N answers, row by row."""

    crps: FloatArray
    """float64[N]: in log space, nats."""
    pinball_log: FloatArray
    """float64[N, 3]: by LEVELS, nats."""
    pinball_tokens: FloatArray
    """float64[N, 3]: by LEVELS, tokens."""
    quantiles: FloatArray
    """float64[N, 3]: by LEVELS, tokens, before any clipping."""
    within: FloatArray
    """float64[N, 3]: 1 where the length was within the bound, 0 where it was not, NaN where that cannot be said."""
    width_log: FloatArray
    """float64[N]: log of P90 over P10."""
    within_2x: FloatArray
    """float64[N]: whether P50 is within a factor of 2 of the length; NaN where that cannot be said."""
    weight: FloatArray
    """float64[N]: of the examples."""
    prompt_ids: tuple[str, ...]

    def take(self, rows: NDArray[np.int64] | BoolArray) -> "Scored":
        """The scores of these rows."""
        index = np.arange(len(self.crps))[rows]
        return Scored(
            self.crps[index],
            self.pinball_log[index],
            self.pinball_tokens[index],
            self.quantiles[index],
            self.within[index],
            self.width_log[index],
            self.within_2x[index],
            self.weight[index],
            tuple(self.prompt_ids[i] for i in index),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """Averages over answers, each with its example's weight; coverage counts answers alike."""

    rows: int
    crps: float
    pinball_log: float
    """Mean over LEVELS, nats."""
    pinball_tokens: float
    """Mean over LEVELS, tokens."""
    coverage: tuple[float, ...]
    """By LEVELS; NaN without answers that can be scored."""
    coverage_rows: tuple[int, ...]
    width_log: float
    within_2x: float
    p90_tokens: float
    """Median of the declared P90."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean score of one model minus another's on the same answers, with a 95 % interval over resampled prompts."""

    mean: float
    low: float
    high: float
    relative: float
    """The mean over the other's mean score; NaN where that is 0."""


def crps_log(
    probabilities: FloatArray, lengths: FloatArray, censored: BoolArray, limits: FloatArray
) -> FloatArray:
    """CRPS [N] in log space, up to the limits [N], of bin masses [N, K] at lengths [N]; of cut ones up to the cut.

    Inside a bin the CDF is taken as linear in the logarithm.
    """
    p = probabilities / probabilities.sum(axis=1, keepdims=True)
    lower = np.cumsum(p, axis=1) - p
    at = np.log(np.clip(lengths - np.where(censored, 0.0, 0.5), 0.25, OPEN_EDGE))
    end = np.log(np.clip(np.where(censored, lengths, limits), 0.25, OPEN_EDGE))
    share, last = _share_below(at), _share_below(np.maximum(at, end))
    middle, final = lower + share * p, lower + last * p
    below = share * _mean_square(lower, middle)
    above = (last - share) * _mean_square(1 - middle, 1 - final)
    return np.asarray(((below + above) * np.diff(_NODES)).sum(axis=1))


def _share_below(logs: FloatArray) -> FloatArray:
    """How much of each bin lies below log lengths [N], float64[N, K]."""
    return np.asarray(np.clip((logs[:, None] - _NODES[:-1]) / np.diff(_NODES), 0.0, 1.0))


def score(probabilities: FloatArray, examples: Sequence[Example]) -> Scored:
    """Scores of bin masses [N, K] of the whole length; for answers in progress, given what is out.

    Raises ValueError when there are not as many rows as examples.
    """
    if len(probabilities) != len(examples):
        raise ValueError(f"{len(probabilities)} rows for {len(examples)} examples")
    lengths = np.array([example.output_tokens for example in examples], dtype=np.float64)
    cut = np.array([example.censored for example in examples])
    generated = np.array([example.question.generated_tokens for example in examples], dtype=np.float64)
    limit = np.array([example.question.max_tokens or OPEN_EDGE for example in examples], dtype=np.float64)
    given = np.where(generated[:, None] > 0, _given(probabilities, generated), probabilities)
    cdf = cdf_from_probabilities(given)
    none, no_limit = np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)
    bounds = np.stack([quantile(cdf, level, none, no_limit) for level in LEVELS], axis=1)
    bounds = np.maximum(bounds, generated[:, None] + 1)
    low = quantile(cdf, _LOW, none, no_limit)
    median = bounds[:, 0]
    clipped = np.minimum(bounds, np.where(cut, np.minimum(lengths, limit), limit)[:, None])
    in_tokens, in_log = _pinball(lengths, clipped), _pinball(_logs(lengths), _logs(clipped))
    return Scored(
        crps=crps_log(np.diff(cdf, axis=1, prepend=0.0), lengths, cut, limit),
        pinball_log=in_log,
        pinball_tokens=in_tokens,
        quantiles=bounds,
        within=_within(lengths, bounds, cut, limit),
        width_log=np.log(bounds[:, 1] / np.maximum(low, generated + 1)),
        within_2x=np.where(
            cut,
            np.where(2 * median < lengths, 0.0, np.nan),
            (median <= 2 * lengths) & (2 * median >= lengths),
        ),
        weight=np.array([example.weight for example in examples]),
        prompt_ids=tuple(example.prompt_id for example in examples),
    )


def summarise(scored: Scored) -> Summary:
    """Averages. Raises ValueError without a row."""
    if not len(scored.crps):
        raise ValueError("no answers were scored")
    known = ~np.isnan(scored.within)
    counts = known.sum(axis=0)
    sums = np.where(known, scored.within, 0.0).sum(axis=0)
    coverage = np.divide(sums, counts, out=np.full(len(LEVELS), np.nan), where=counts > 0)
    return Summary(
        rows=len(scored.crps),
        crps=_mean(scored.crps, scored.weight),
        pinball_log=_mean(scored.pinball_log.mean(axis=1), scored.weight),
        pinball_tokens=_mean(scored.pinball_tokens.mean(axis=1), scored.weight),
        coverage=tuple(coverage.tolist()),
        coverage_rows=tuple(counts.tolist()),
        width_log=_mean(scored.width_log, scored.weight),
        within_2x=_mean(scored.within_2x, scored.weight),
        p90_tokens=float(np.median(scored.quantiles[:, 1])),
    )


def by_group(scored: Scored, groups: Sequence[str]) -> Mapping[str, Summary]:
    """Summaries of the answers of each group, by name."""
    group = np.array(groups)
    return {name: summarise(scored.take(group == name)) for name in sorted(set(groups))}


def difference(
    ours: FloatArray,
    theirs: FloatArray,
    prompt_ids: Sequence[str],
    weight: FloatArray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Paired difference of scores [N], which are better when lower, by a bootstrap over prompts."""
    _, prompt = np.unique(np.array(prompt_ids), return_inverse=True)
    w = np.ones(len(ours)) if weight is None else weight
    sums = np.bincount(prompt, weights=w * (ours - theirs))
    weights = np.bincount(prompt, weights=w)
    draws = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[draws].sum(axis=1) / weights[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(sums.sum() / weights.sum())
    level = _mean(theirs, w)
    return Difference(mean, float(low), float(high), mean / level if level else float("nan"))


def _given(probabilities: FloatArray, generated: FloatArray) -> FloatArray:
    return conditioned(probabilities, generated, np.full(len(generated), OPEN_EDGE))


def _logs(lengths: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(lengths - 0.5, 0.5)))


def _mean_square(a: FloatArray, b: FloatArray) -> FloatArray:
    """Mean of the square of what goes evenly from a to b."""
    return (a * a + a * b + b * b) / 3


def _pinball(lengths: FloatArray, bounds: FloatArray) -> FloatArray:
    """Losses [N, 3] of bounds [N, 3]."""
    over = lengths[:, None] - bounds
    level = np.array(LEVELS)
    return np.maximum(level * over, (level - 1) * over)


def _within(lengths: FloatArray, bounds: FloatArray, cut: BoolArray, limit: FloatArray) -> FloatArray:
    inside = (lengths[:, None] <= bounds).astype(np.float64)
    # Cut below the bound: it may have ended on either side of it. Cut at the bound or past it: it was longer.
    inside = np.where(cut[:, None], np.where(lengths[:, None] < bounds, np.nan, 0.0), inside)
    return np.where(bounds >= limit[:, None], np.nan, inside)


def _mean(values: FloatArray, weight: FloatArray) -> float:
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weight[known])) if known.any() else float("nan")
