"""Prequential evaluation: every answer is given before its outcome is learned, as in service.

Many random orders of the same outcomes run side by side, each in a world of its own that learns from its own past only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline_core.calibration.online import OnlineLengths
from paceline_core.lengths import OPEN_EDGE, FloatArray, cdf_from_probabilities, quantile

LEVELS = (0.5, 0.9, 0.95)
AFTER_OUTCOMES = (20, 200)
SCORED_OUTCOMES = 1000
WINDOW_OUTCOMES = 500
SETTLE_OUTCOMES = 100
WINDOW_STEP = 10
IN_FLIGHT = 8
"""Outcomes of one stream that are answered before the first of them is learned: requests overlap."""

Key = tuple[str, str]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Make = Callable[[int], OnlineLengths]
"""A learner with this many worlds that has learned nothing."""


@dataclass(frozen=True)
class Outcomes:
    """What really happened, a row per answer."""

    lengths: IntArray
    """int64[N], tokens."""
    censored: BoolArray
    """bool[N]: longer is all that is known."""
    limits: FloatArray
    """float64[N]: max_tokens, 0 for none."""
    prompts: IntArray
    """int64[N]: the prompt of each as a number; answers to one prompt are alike."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: IntArray) -> "Outcomes":
        """These rows, in this order."""
        return Outcomes(self.lengths[rows], self.censored[rows], self.limits[rows], self.prompts[rows])

    def joined(self, other: "Outcomes") -> "Outcomes":
        """These rows, then the others; their prompts are not the same ones."""
        return Outcomes(
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.censored, other.censored]),
            np.concatenate([self.limits, other.limits]),
            np.concatenate([self.prompts, other.prompts + self.prompts.max(initial=-1) + 1]),
        )


@dataclass(frozen=True)
class Stream:
    """Outcomes in their order of arrival with base bin masses float64[N, K] and (model, app) keys."""

    base: FloatArray
    keys: tuple[Key, ...]
    outcomes: Outcomes

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: IntArray) -> "Stream":
        """The stream of these rows, in this order."""
        return Stream(self.base[rows], tuple(self.keys[i] for i in rows), self.outcomes.take(rows))

    def joined(self, other: "Stream") -> "Stream":
        """This stream, then the other."""
        return Stream(
            np.concatenate([self.base, other.base]),
            self.keys + other.keys,
            self.outcomes.joined(other.outcomes),
        )

    def tagged(self, app: str) -> "Stream":
        """The same outcomes, all under one app tag."""
        return Stream(self.base, tuple((model, app) for model, _ in self.keys), self.outcomes)


def prequential(learner: OnlineLengths, stream: Stream) -> FloatArray:
    """Answers float64[N, K] to the whole stream, each made before its own outcome was learned."""
    answers = np.empty_like(stream.base)
    for start in range(0, len(stream), IN_FLIGHT):
        rows = np.arange(start, min(start + IN_FLIGHT, len(stream)))
        answers[rows] = _answer_and_learn(learner, stream.take(rows), None)
    return answers


def bounds(masses: FloatArray) -> FloatArray:
    """Declared P50, P90, P95 in tokens of N answers, float64[N, 3]."""
    cdf = cdf_from_probabilities(masses)
    none, limit = np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)
    return np.stack([quantile(cdf, level, none, limit) for level in LEVELS], axis=1)


def hits(masses: FloatArray, outcomes: Outcomes) -> FloatArray:
    """Whether each outcome was within each declared bound, float64[N, 3].

    NaN where that is not scored: a bound at or past max_tokens covers whatever happens, and an answer that was cut by
    something else before its bound may have gone on past it.
    """
    declared = bounds(masses)
    lengths = outcomes.lengths[:, None]
    limited = outcomes.limits[:, None] > 0
    trivial = limited & (declared >= outcomes.limits[:, None])
    hidden = ~limited & outcomes.censored[:, None] & (lengths < declared)
    # An answer that was cut is longer than its tokens.
    within = (lengths + outcomes.censored[:, None] <= declared).astype(np.float64)
    return np.where(trivial | hidden, np.nan, within)


def coverage(found: FloatArray) -> dict[str, float]:
    """Shares of hits by level, of `hits` rows."""
    known = np.isfinite(found)
    counts = known.sum(axis=0)
    shares = np.where(counts > 0, np.where(known, found, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return dict(zip(level_names(), map(float, shares), strict=True))


def log_widths(masses: FloatArray) -> FloatArray:
    """Width of the central 80 % interval of each answer as ln(P90 / P10), float64[N]."""
    cdf = cdf_from_probabilities(masses)
    none, limit = np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)
    return np.asarray(np.log(quantile(cdf, 0.9, none, limit) / quantile(cdf, 0.1, none, limit)))


def level_names() -> tuple[str, ...]:
    """p50, p90, p95: how levels are called in JSON."""
    return tuple(f"p{round(100 * level)}" for level in LEVELS)


def recovery(
    make: Make, stream: Stream, orders: int, seed: int, after: Sequence[int] = AFTER_OUTCOMES
) -> dict[str, Any]:
    """Coverage for an unseen model after `after` outcomes, over random orders of its outcomes.

    `frozen`: learning stops there and the next SCORED_OUTCOMES (or as many as there are) are answered from what is
    known; `learning`: it goes on. Each figure is the mean over the orders, with the spread between them.
    """
    need = min(len(stream), max(after) + SCORED_OUTCOMES)
    generator = np.random.default_rng(seed)
    order = np.stack([generator.permutation(len(stream))[:need] for _ in range(orders)])
    learner = make(orders)
    result: dict[str, Any] = {"outcomes": len(stream), "orders": orders}
    found = np.empty((orders, need, len(LEVELS)))
    width = np.empty((orders, need))
    at = 0
    for stop in (*after, need):
        if at < need:
            found[:, at:stop], width[:, at:stop] = _run(learner, stream, order[:, at:stop])
            at = min(stop, need)
        if stop in after and stop < need:
            ahead = order[:, stop : stop + SCORED_OUTCOMES]
            result[f"after_{stop}"] = {"scored": ahead.shape[1], **_frozen(learner, stream, ahead)}
    for stop in after:
        if stop < need:
            rows = slice(stop, stop + SCORED_OUTCOMES)
            point = result[f"after_{stop}"]
            point["learning"] = _over_orders(found[:, rows])
            point["log_width_80_learning"] = float(width[:, rows].mean())
    return result


def change_windows(make: Make, before: Stream, then: Stream, runs: int, seed: int) -> dict[str, Any]:
    """Coverage in sliding windows after a change of the workload in the middle of a run, over runs in random order.

    A window counts as good when the coverage of a level is within 2 points + 2 standard errors of what was declared;
    windows start SETTLE_OUTCOMES after the change.
    """
    generator = np.random.default_rng(seed)
    first, second = len(before), len(then)
    order = np.stack(
        [np.r_[generator.permutation(first), first + generator.permutation(second)] for _ in range(runs)]
    )
    found, width = _run(make(runs), before.joined(then), order)
    return {
        "before": first,
        "after": second,
        "runs": runs,
        **windows(found[:, first + SETTLE_OUTCOMES :]),
        "log_width_80": float(width[:, first + SETTLE_OUTCOMES :].mean()),
    }


def windows(found: FloatArray) -> dict[str, Any]:
    """Figures of sliding windows over hits float64[runs, T, 3]."""
    starts = range(0, found.shape[1] - WINDOW_OUTCOMES + 1, WINDOW_STEP)
    if not starts:
        return {"windows": 0}
    shares = np.stack([np.nanmean(found[:, s : s + WINDOW_OUTCOMES], axis=1) for s in starts], axis=1)
    result: dict[str, Any] = {"windows": shares.shape[0] * shares.shape[1]}
    for i, (name, level) in enumerate(zip(level_names(), LEVELS, strict=True)):
        allowed = 0.02 + 2 * np.sqrt(level * (1 - level) / WINDOW_OUTCOMES)
        result[name] = {
            "good_windows": float(np.mean(np.abs(shares[:, :, i] - level) <= allowed)),
            "mean": float(shares[:, :, i].mean()),
            "lowest": float(shares[:, :, i].min()),
            "highest": float(shares[:, :, i].max()),
            "allowed": float(allowed),
        }
    return result


def _run(learner: OnlineLengths, stream: Stream, order: IntArray) -> tuple[FloatArray, FloatArray]:
    """Hits [orders, T, 3] and widths [orders, T] of T steps; every order is a world."""
    worlds = np.arange(len(order))
    found = np.empty((*order.shape, len(LEVELS)))
    width = np.empty(order.shape)
    for step in range(order.shape[1]):
        now = stream.take(order[:, step])
        answers = _answer_and_learn(learner, now, worlds)
        found[:, step] = hits(answers, now.outcomes)
        width[:, step] = log_widths(answers)
    return found, width


def _answer_and_learn(learner: OnlineLengths, now: Stream, worlds: IntArray | None) -> FloatArray:
    none = np.zeros(len(now))
    where = None if worlds is None else worlds.tolist()
    answers = learner.refine(now.base, now.keys, none, worlds=where).probabilities
    learner.observe(
        now.base,
        now.keys,
        none,
        now.outcomes.lengths.astype(np.float64),
        now.outcomes.censored,
        now.outcomes.limits,
        declared=bounds(answers),
        worlds=where,
    )
    return answers


def _frozen(learner: OnlineLengths, stream: Stream, ahead: IntArray) -> dict[str, Any]:
    found, width = np.empty((*ahead.shape, len(LEVELS))), np.empty(ahead.shape)
    for world, rows in enumerate(ahead):
        part = stream.take(rows)
        answers = learner.refine(
            part.base, part.keys, np.zeros(len(part)), worlds=[world] * len(part)
        ).probabilities
        found[world] = hits(answers, part.outcomes)
        width[world] = log_widths(answers)
    return {"frozen": _over_orders(found), "log_width_80": float(width.mean())}


def _over_orders(found: FloatArray) -> dict[str, Mapping[str, float]]:
    """Mean and spread over orders of the coverage in each, of hits float64[orders, T, 3]."""
    shares = np.nanmean(found, axis=1)
    return {
        name: {"mean": float(shares[:, i].mean()), "sd": float(shares[:, i].std())}
        for i, name in enumerate(level_names())
    }
