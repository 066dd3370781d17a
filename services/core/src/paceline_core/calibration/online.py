"""The online learner of lengths: offset, mixture with the running histogram, recalibration; refine and observe.

Per question, over the whole batch (what is out, g tokens, conditions every step):
    base masses -> stretched in the logarithm by the offset of (model, app) -> mixed with the histogram of (model, app)
    -> mapped by what is known of the PIT, with steered levels.
Per outcome, learned at three levels (fleet, model, app), each the prior of the next. A censored outcome counts as the
distribution of what it may have become, by the answer of this moment (self-consistency: Efron, 1967).
Everything is a function of the sequence of outcomes: no clock, no randomness.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.calibration.drift import DriftReport
from paceline_core.calibration.evidence import Rows
from paceline_core.calibration.forecast import Forecast, cdf_at, forecast, whole, width
from paceline_core.calibration.learned import Learned
from paceline_core.calibration.offset import LOG_MIDDLE, NO_OFFSETS, ShippedOffsets
from paceline_core.calibration.params import CalibrationParams, LengthKey
from paceline_core.calibration.recalibration import LEVELS, PIT_BINS, pit_shares
from paceline_core.lengths import EDGES, LOWER, OPEN_EDGE, TAIL, UPPER, FloatArray, K

__all__ = ["CalibrationParams", "LengthKey", "OnlineLengths", "Refined"]


@dataclass(frozen=True, slots=True)
class Refined:
    """Answers to N questions."""

    probabilities: FloatArray
    """float64[N, K]: bin masses of the whole length, right once conditioned on the tokens that are out."""
    from_histogram: NDArray[np.bool_]
    """[N] True where the running histogram has more say than the base: the base misses."""
    coverage_p90: FloatArray
    """[N] Realised coverage of the declared P90 for the key; 0: not known, a known one is never 0."""


class OnlineLengths:
    """Refines base predictions and learns from outcomes. Not thread-safe: one owner, one thread."""

    def __init__(self, params: CalibrationParams | None = None, offsets: ShippedOffsets = NO_OFFSETS) -> None:
        self.params = params or CalibrationParams()
        self._learned = Learned(self.params, offsets)

    @property
    def observed(self) -> int:
        """Outcomes learned from in all."""
        return self._learned.observed

    @property
    def keys(self) -> list[LengthKey]:
        """(model, app) pairs that are kept, the one observed longest ago first."""
        return self._learned.keys

    def observed_of(self, model: str, app: str | None = None, world: int = 0) -> int:
        """Outcomes learned from of a model, or of a model and an app; 0 once it was dropped."""
        return self._learned.drift.observed(self._row(model, app, world))

    def report(self, model: str | None = None, app: str | None = None, world: int = 0) -> DriftReport:
        """Drift of a pair, a model, or all."""
        return self._learned.drift.report(self._row(model, app, world))

    def refine(
        self,
        base: FloatArray,
        keys: Sequence[LengthKey],
        generated: FloatArray,
        worlds: Sequence[int] | None = None,
        usable: NDArray[np.bool_] | None = None,
    ) -> Refined:
        """Answers for base masses float64[N, K], (model, app) [N] and tokens that are out [N].

        `worlds` [N]: which of `max_worlds` separate fleets each row asks. `usable` [N]: False where there is no base,
        so that the running histogram answers alone. Raises ValueError on other base rows that are not distributions.
        """
        g = np.asarray(generated, dtype=np.float64)
        known, coverage = self._learned.asked(keys, g, worlds)
        answer = forecast(base, known, g, usable)
        return Refined(whole(answer.answer, answer.generated), answer.base_share < 0.5, coverage)

    def observe(
        self,
        base: FloatArray,
        keys: Sequence[LengthKey],
        generated: FloatArray,
        lengths: FloatArray,
        censored: NDArray[np.bool_],
        max_tokens: FloatArray | None = None,
        declared: FloatArray | None = None,
        worlds: Sequence[int] | None = None,
        usable: NDArray[np.bool_] | None = None,
    ) -> None:
        """Learn from N outcomes, one after the other: whole `lengths` [N] in tokens (longer than that where censored)
        of the questions that `refine` was asked.

        `max_tokens` [N]: limits, 0 for none. `declared` [N, 3]: P50, P90, P95 as they were promised, nan where they
        are not known; then what would have been promised now is scored. An outcome that is not past `generated` says
        nothing and is passed over, as is one of a row that is no distribution. `usable` as for `refine`.
        """
        n = len(keys)
        limits = np.full(n, OPEN_EDGE) if max_tokens is None else np.asarray(max_tokens, dtype=np.float64)
        limits = np.where(limits > 0, np.minimum(limits, OPEN_EDGE), OPEN_EDGE)
        promised = np.full((n, len(LEVELS)), np.nan) if declared is None else np.asarray(declared)
        g = np.asarray(generated, dtype=np.float64)
        for wave in _waves(n, worlds):
            picked = slice(None) if len(wave) == n else wave
            self._learn(
                np.asarray(base)[picked],
                [keys[i] for i in wave],
                g[picked],
                np.minimum(np.asarray(lengths, dtype=np.float64)[picked], OPEN_EDGE - 1),
                np.asarray(censored, dtype=np.bool_)[picked],
                limits[picked],
                promised[picked],
                None if worlds is None else [worlds[i] for i in wave],
                np.ones(len(wave), dtype=np.bool_) if usable is None else usable[picked],
            )

    def change_base(self, offsets: ShippedOffsets = NO_OFFSETS) -> None:
        """Another model makes the base from now on: what was learned about the last one's answers is forgotten, and
        the histograms stay."""
        self._learned.forget_base(offsets)

    def snapshot(self) -> Callable[[], bytes]:
        """The state of this moment; the call that turns it into bytes may be made in another thread."""
        return self._learned.snapshot()

    def to_bytes(self) -> bytes:
        """The whole state; `from_bytes` gives back an equal learner."""
        return self.snapshot()()

    @classmethod
    def from_bytes(
        cls, state: bytes, params: CalibrationParams | None = None, offsets: ShippedOffsets = NO_OFFSETS
    ) -> "OnlineLengths":
        """A learner in a saved state. More keys than `params` allows: the longest unobserved are left out.

        Raises StateError.
        """
        learner = cls(params, offsets)
        learner._learned.load(state)
        return learner

    def _learn(
        self,
        base: FloatArray,
        keys: Sequence[LengthKey],
        generated: FloatArray,
        lengths: FloatArray,
        censored: NDArray[np.bool_],
        limits: FloatArray,
        declared: FloatArray,
        worlds: Sequence[int] | None,
        usable: NDArray[np.bool_],
    ) -> None:
        """One wave: no two rows of the same world."""
        if not usable.all():
            base = np.where(usable[:, None], base, TAIL)
        total = base.sum(axis=1)
        told = (lengths > np.where(censored, np.maximum(generated, 0), generated)) & (generated >= 0)
        told &= np.isfinite(total) & (total > 0) & (base.min(axis=1) >= 0)
        if not told.all():
            at = np.flatnonzero(told).tolist()
            if at:
                self._learn(
                    base[at], [keys[i] for i in at], generated[at], lengths[at], censored[at], limits[at],
                    declared[at], None if worlds is None else [worlds[i] for i in at], usable[at],
                )  # fmt: skip
            return
        learned = self._learned
        paths = learned.claim(keys, worlds)
        known = learned.known(keys, paths, generated)
        f = forecast(base, known, generated, usable)
        learned.changed()
        became = _became(f, lengths, censored)
        places = learned.places(paths, f.generated)

        off = became.log_mean - f.mean - known.shipped - known.offset
        spread = became.log_variance + off**2
        first = (f.generated == 0).astype(np.float64)
        values, weight = np.empty((2, len(keys), K + 2))
        values[:, :K] = became.mass
        values[:, K] = known.offset + np.clip(off, -_FARTHEST, _FARTHEST)
        values[:, K + 1] = np.minimum(spread / f.variance, _FARTHEST**2)
        weight[:, :K] = first[:, None]
        weight[:, K:] = (first * usable)[:, None]
        learned.lengths.add(paths, values, weight)

        values, weight = np.empty((2, len(keys), PIT_BINS + 1))
        values[:, :PIT_BINS] = pit_shares(cdf_at(f.mixed_cdf, lengths, f.generated), censored, f.table)
        by_base = f.base_share * became.likelihood[0]
        values[:, PIT_BINS] = by_base / (by_base + (1 - f.base_share) * became.likelihood[1])
        weight[:, :PIT_BINS] = known.settled[:, None]
        weight[:, PIT_BINS] = usable
        learned.calibration.add(places, values, weight)

        pit = cdf_at(f.answer, lengths, f.generated)
        hits = self._steer(places, pit, censored)
        # A promise that the limit clipped says nothing of the answer: what would be promised now is scored for it.
        said = (declared < limits[:, None]) & (~censored[:, None] | (lengths[:, None] >= declared))
        hits = np.where(said, ~censored[:, None] & (lengths[:, None] <= declared), hits)
        learned.drift.add(
            paths,
            hits,
            np.where(censored, np.nan, pit),
            np.where(usable, off, np.nan),
            width(f.answer),
        )

    def _steer(self, places: Rows, pit: FloatArray, censored: NDArray[np.bool_]) -> FloatArray:
        """Steer the levels by what they would have covered, which is returned: [N, 3], as of `_hits`."""
        hits = _hits(pit, censored)
        step = self.params.steering_gain * (LEVELS - hits)
        steer = self._learned.steer
        steer[places] = np.clip(steer[places] + step[:, None, :], -_FARTHEST_STEER, _FARTHEST_STEER)
        return hits

    def _row(self, model: str | None, app: str | None, world: int) -> int:
        level = 0 if model is None else 1 if app is None else 2
        return int(self._learned.paths([(model or "", app or "")], [world])[0, level])


_FARTHEST = 3.0
"""Log residuals past it are drawn in: one answer of 30,000 tokens is no new model."""
_FARTHEST_STEER = 0.15


@dataclass(frozen=True, slots=True)
class _Became:
    """What N lengths were or, of censored ones, may have become."""

    mass: FloatArray
    """[N, K] All in one bin, or spread by the answer."""
    log_mean: FloatArray
    log_variance: FloatArray
    likelihood: FloatArray
    """[2, N] By the stretched base and by the histogram; never 0."""


def _became(f: Forecast, lengths: FloatArray, censored: NDArray[np.bool_]) -> _Became:
    rows = np.arange(len(lengths))
    bins = np.minimum(np.searchsorted(EDGES, lengths, side="left"), K - 1)
    mass = np.zeros((len(lengths), K))
    mass[rows, bins] = 1.0
    log_mean, log_variance = np.log(np.maximum(lengths, 1.0)), np.zeros(len(lengths))
    likelihood = f.parts[:, rows, bins]
    if censored.any():
        low = np.maximum(LOWER, f.generated[:, None])
        beyond = np.clip((UPPER - lengths[:, None]) / np.maximum(UPPER - low, 1e-9), 0.0, 1.0)
        later = beyond * np.maximum(np.diff(f.answer, axis=1, prepend=0.0), 1e-9 * TAIL)
        later /= later.sum(axis=1, keepdims=True)
        mass[censored] = later[censored]
        mean = later @ LOG_MIDDLE
        log_variance = np.where(censored, np.maximum(later @ LOG_MIDDLE**2 - mean**2, 0.0), log_variance)
        log_mean = np.where(censored, mean, log_mean)
        likelihood = np.where(censored, (f.parts * beyond).sum(axis=2), likelihood)
    return _Became(mass, log_mean, log_variance, likelihood + 1e-3 * TAIL[bins])


def _hits(pit: FloatArray, censored: NDArray[np.bool_]) -> FloatArray:
    """[N, 3] By how much each level covers outcomes with these PIT values: 1 or 0.

    Of an answer that was cut only the PIT of the cut is known. It is covered by the chance that the forecast gives to
    its end being within the level, given that it was not over at the cut (the PIT of a censored outcome, as Czado,
    Gneiting and Held, 2009, have it for counts): a level above all that a limit leaves open would else look kept
    whatever came, or go unscored where most answers are cut.
    """
    left = (LEVELS - pit[:, None]) / np.maximum(1.0 - pit[:, None], 1e-9)
    return np.where(censored[:, None], np.clip(left, 0.0, 1.0), pit[:, None] <= LEVELS)


def _waves(n: int, worlds: Sequence[int] | None) -> list[list[int]]:
    """Rows in the order in which they are to be learned from, together where no two are of one world."""
    if worlds is None:
        return [[i] for i in range(n)]
    turn: dict[int, int] = {}
    waves: list[list[int]] = []
    for i, world in enumerate(worlds):
        at = turn.get(world, 0)
        turn[world] = at + 1
        if at == len(waves):
            waves.append([])
        waves[at].append(i)
    return waves
