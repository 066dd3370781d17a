"""The table of one split: scores of every learner, and what the candidate gains over each.

Uncertainty is a bootstrap over prompts: answers to one prompt are alike, so outcomes are no independent draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.online_evaluation import level_names
from paceline_lab.lengths.scoring import Scored, Summary, score, summarise

RESAMPLES = 1000

Document = dict[str, Any]


def split_table(
    learners: Mapping[str, FloatArray], examples: Sequence[Example], candidate: str, seed: int
) -> Document:
    """Scores of bin masses [N, K] by learner, and the gain of the candidate over each other."""
    scored = {name: score(masses, examples) for name, masses in learners.items()}
    prompts = np.unique(
        [f"{example.source} {example.prompt_id}" for example in examples], return_inverse=True
    )[1]
    resample = _Resamples(prompts, next(iter(scored.values())).weight, seed)
    return {
        "scored": len(examples),
        "prompts": int(prompts.max()) + 1,
        "learners": {name: _figures(one, resample) for name, one in scored.items()},
        "gain": {
            name: _gain(scored[candidate], one, resample) for name, one in scored.items() if name != candidate
        },
    }


def summary_figures(summary: Summary) -> Document:
    """A summary as JSON takes it."""
    return {
        "crps": summary.crps,
        "pinball": summary.pinball_log,
        "pinball_tokens": summary.pinball_tokens,
        "coverage": dict(zip(level_names(), summary.coverage, strict=True)),
        "coverage_rows": dict(zip(level_names(), summary.coverage_rows, strict=True)),
        "log_width_80": summary.width_log,
        "within_2x": summary.within_2x,
        "p90_tokens": summary.p90_tokens,
    }


class _Resamples:
    """Prompts drawn again with replacement: means of row scores in each resample."""

    def __init__(self, prompts: np.ndarray, weight: FloatArray, seed: int) -> None:
        self._prompts, self._weight = prompts, weight
        self._count = int(prompts.max()) + 1
        chances = np.full(self._count, 1 / self._count)
        self._drawn = np.random.default_rng(seed).multinomial(self._count, chances, size=RESAMPLES)

    def means(self, values: FloatArray, weighted: bool = True) -> FloatArray:
        """Mean of values [N] in each resample, float64[RESAMPLES]; NaN rows are left out."""
        known = np.isfinite(values)
        weight = np.where(known, self._weight if weighted else 1.0, 0.0)
        sums = np.bincount(self._prompts, weight * np.where(known, values, 0.0), self._count)
        weights = np.bincount(self._prompts, weight, self._count)
        return np.asarray((self._drawn @ sums) / np.maximum(self._drawn @ weights, 1e-12))


def _figures(scored: Scored, resample: _Resamples) -> Document:
    figures = summary_figures(summarise(scored))
    figures["crps_ci"] = _interval(resample.means(scored.crps))
    figures["coverage_ci"] = {
        name: _interval(resample.means(scored.within[:, i], weighted=False))
        for i, name in enumerate(level_names())
    }
    return figures


def _gain(ours: Scored, theirs: Scored, resample: _Resamples) -> Document:
    """By which share our CRPS, and our pinball loss, are below theirs, with paired intervals."""
    by_crps = _relative(ours.crps, theirs.crps, resample)
    by_pinball = _relative(ours.pinball_log.mean(axis=1), theirs.pinball_log.mean(axis=1), resample)
    return {**by_crps, "pinball": by_pinball}


def _relative(ours: FloatArray, theirs: FloatArray, resample: _Resamples) -> Document:
    gains = 1 - resample.means(ours) / resample.means(theirs)
    low, high = _interval(gains)
    weight = resample._weight
    value = 1 - float(np.average(ours, weights=weight) / np.average(theirs, weights=weight))
    return {"value": value, "low": low, "high": high}


def _interval(values: FloatArray) -> list[float]:
    return [float(x) for x in np.percentile(values, (2.5, 97.5))]
