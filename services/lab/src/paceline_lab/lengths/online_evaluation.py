"""Prequential evaluation: every answer is given before its outcome is learned, as in service.

Outcomes are learned in batches of `IN_FLIGHT`: requests overlap, so none of them sees the outcome of its neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import OPEN_EDGE, FloatArray, cdf_from_probabilities, quantile

IN_FLIGHT = 8
LEVELS = (0.5, 0.9, 0.95)
AFTER_OUTCOMES = (20, 200)
SCORED_OUTCOMES = 1000
WINDOW_OUTCOMES = 500
SETTLE_OUTCOMES = 100

Key = tuple[str, str]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Stream:
    """Outcomes in their order of arrival: base bin masses float64[N, K], (model, app) keys, lengths, censoring."""

    base: FloatArray
    keys: tuple[Key, ...]
    lengths: IntArray
    censored: BoolArray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: IntArray) -> "Stream":
        """The stream of these rows, in this order."""
        return Stream(
            self.base[rows], tuple(self.keys[i] for i in rows), self.lengths[rows], self.censored[rows]
        )

    def joined(self, other: "Stream") -> "Stream":
        """This stream, then the other."""
        return Stream(
            np.concatenate([self.base, other.base]),
            self.keys + other.keys,
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.censored, other.censored]),
        )

    def tagged(self, app: str) -> "Stream":
        """The same outcomes, all under one app tag."""
        return Stream(self.base, tuple((model, app) for model, _ in self.keys), self.lengths, self.censored)


class OnlineLearner(Protocol):
    """Answers with bin masses, and learns from outcomes."""

    def answer(self, base: FloatArray, keys: Sequence[Key]) -> FloatArray:
        """Bin masses float64[N, K] for base masses of the same shape."""

    def learn(self, seen: Stream, answers: FloatArray) -> None:
        """Learn outcomes together with what was answered to them, float64[N, K]."""


def prequential(learner: OnlineLearner, stream: Stream) -> FloatArray:
    """Answers float64[N, K] to the whole stream, each made before its own outcome was learned."""
    answers = np.empty_like(stream.base)
    for start in range(0, len(stream), IN_FLIGHT):
        rows = np.arange(start, min(start + IN_FLIGHT, len(stream)))
        part = stream.take(rows)
        answers[rows] = learner.answer(part.base, part.keys)
        learner.learn(part, answers[rows])
    return answers


def bounds(masses: FloatArray) -> FloatArray:
    """Declared P50, P90, P95 in tokens of N answers, float64[N, 3]."""
    cdf = cdf_from_probabilities(masses)
    none, limit = np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)
    return np.stack([quantile(cdf, level, none, limit) for level in LEVELS], axis=1)


def hits(masses: FloatArray, lengths: IntArray, censored: BoolArray) -> FloatArray:
    """Whether each outcome was within each declared bound, float64[N, 3]; NaN where its censoring hides that."""
    limits = bounds(masses)
    within = (lengths[:, None] <= limits).astype(np.float64)
    hidden = censored[:, None] & (lengths[:, None] < limits)
    return np.where(hidden, np.nan, within)


def coverage(found: FloatArray) -> dict[str, float]:
    """Shares of hits by level, of `hits` rows."""
    known = np.isfinite(found)
    counts = known.sum(axis=0)
    shares = np.where(counts > 0, np.where(known, found, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return {f"p{round(100 * level)}": float(share) for level, share in zip(LEVELS, shares, strict=True)}


def recovery(
    make: Callable[[], OnlineLearner],
    stream: Stream,
    orders: int,
    seed: int,
    after: Sequence[int] = AFTER_OUTCOMES,
) -> dict[str, Any]:
    """Coverage for an unseen model after `after` outcomes, over random orders of its outcomes.

    `frozen`: learning stops there and the next `SCORED_OUTCOMES` (or as many as there are) are answered from what is
    known; `learning`: it goes on. Each figure is the mean over the orders, with the spread between them.
    """
    generator = np.random.default_rng(seed)
    found: dict[tuple[int, str], list[list[float]]] = {
        (n, mode): [] for n in after for mode in ("frozen", "learning")
    }
    widths: dict[int, list[float]] = {n: [] for n in after}
    scored = {n: max(0, min(SCORED_OUTCOMES, len(stream) - n)) for n in after}
    need = min(len(stream), max(after) + SCORED_OUTCOMES)
    for _ in range(orders):
        order = stream.take(generator.permutation(len(stream))[:need])
        learner, answers, at = make(), np.empty_like(order.base), 0
        for stop in (*after, need):
            stop = min(stop, need)
            if stop > at:
                part = order.take(np.arange(at, stop))
                answers[at:stop] = prequential(learner, part)
                at = stop
            if stop in scored and scored[stop] and stop < need:
                ahead = order.take(np.arange(stop, stop + scored[stop]))
                frozen = learner.answer(ahead.base, ahead.keys)
                found[stop, "frozen"].append(
                    list(coverage(hits(frozen, ahead.lengths, ahead.censored)).values())
                )
                widths[stop].append(log_width(frozen))
        for n in after:
            if scored[n]:
                rows = slice(n, n + scored[n])
                found[n, "learning"].append(
                    list(coverage(hits(answers[rows], order.lengths[rows], order.censored[rows])).values())
                )
    result: dict[str, Any] = {"outcomes": len(stream), "orders": orders}
    for n in after:
        result[f"after_{n}"] = {"scored": scored[n], "log_width_80": _mean(widths[n])}
        for mode in ("frozen", "learning"):
            runs = np.asarray(found[n, mode])
            result[f"after_{n}"][mode] = (
                {}
                if not len(runs)
                else {
                    f"p{round(100 * level)}": {
                        "mean": float(np.nanmean(runs[:, i])),
                        "sd": float(np.nanstd(runs[:, i])),
                    }
                    for i, level in enumerate(LEVELS)
                }
            )
    return result


def change_windows(learner: OnlineLearner, before: Stream, then: Stream) -> dict[str, Any]:
    """Coverage in sliding windows after a change of the workload in the middle of a run.

    A window counts as good when the coverage of a level is within 2 points + 2 standard errors of what was declared;
    windows start `SETTLE_OUTCOMES` after the change.
    """
    stream = before.joined(then)
    answers = prequential(learner, stream)
    found = hits(answers, stream.lengths, stream.censored)[len(before) + SETTLE_OUTCOMES :]
    result: dict[str, Any] = {"before": len(before), "after": len(then), "windows": 0}
    starts = np.arange(0, max(0, len(found) - WINDOW_OUTCOMES + 1), 10)
    if not len(starts):
        return result
    result["windows"] = len(starts)
    for i, level in enumerate(LEVELS):
        shares = np.array([np.nanmean(found[s : s + WINDOW_OUTCOMES, i]) for s in starts])
        allowed = 0.02 + 2 * np.sqrt(level * (1 - level) / WINDOW_OUTCOMES)
        result[f"p{round(100 * level)}"] = {
            "good_windows": float(np.mean(np.abs(shares - level) <= allowed)),
            "lowest": float(shares.min()),
            "highest": float(shares.max()),
            "allowed": float(allowed),
        }
    result["log_width_80"] = log_width(answers[len(before) + SETTLE_OUTCOMES :])
    return result


def log_widths(masses: FloatArray) -> FloatArray:
    """Width of the central 80 % interval of each answer as ln(P90 / P10), float64[N]."""
    cdf = cdf_from_probabilities(masses)
    none, limit = np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)
    return np.asarray(np.log(quantile(cdf, 0.9, none, limit) / quantile(cdf, 0.1, none, limit)))


def log_width(masses: FloatArray) -> float:
    """Mean of `log_widths`."""
    return float(np.mean(log_widths(masses)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
