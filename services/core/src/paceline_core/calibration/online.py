"""The online learner of lengths: offset, mixture with the running histogram, recalibration; refine and observe.

Per question, over the whole batch (what is out, g tokens, conditions every step):
    base masses -> stretched in the logarithm by the offset of (model, app) -> mixed with the histogram of (model, app)
    -> mapped by what is known of the PIT, with steered levels.
Per outcome, learned at three levels (fleet, model, app), each the prior of the next. A censored outcome counts as the
distribution of what it may have become, by the answer of this moment (self-consistency: Efron, 1967).
Everything is a function of the sequence of outcomes: no clock, no randomness.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from paceline_core.calibration.drift import Drift, DriftReport
from paceline_core.calibration.evidence import BLANK, Evidence, Rows
from paceline_core.calibration.offset import LOG_MIDDLE, NO_OFFSETS, ShippedOffsets, log_moments, stretched
from paceline_core.calibration.recalibration import (
    IDENTITY,
    LEVELS,
    PIT_BINS,
    PIT_EDGES,
    pit_map,
    pit_shares,
    recalibrated,
)
from paceline_core.histogram import HistogramParams, prior
from paceline_core.key_rows import Key, KeyRows
from paceline_core.lengths import EDGES, LOWER, OPEN_EDGE, TAIL, TAIL_MIX, UPPER, FloatArray, K
from paceline_core.saved_state import StateError, Unpacker, pack

BUCKETS = (0, 50, 200, 800)
"""Output tokens from which each progress bucket begins."""

_MAGIC = b"PLO1"

LengthKey = tuple[str, str]
"""(model, app)."""


@dataclass(frozen=True, slots=True)
class CalibrationParams:
    """How it learns. Half-lives and concentrations are in outcomes; tuples are per level: fleet, model, app."""

    histogram: HistogramParams = field(default_factory=HistogramParams)
    """The running histogram; `max_models` and `max_keys` bound everything that is kept."""
    offset_half_life: float = 200.0
    """Of log residuals and of their spread."""
    offset_concentration: tuple[float, float, float] = (10.0, 1.0, 4.0)
    """What the level above is worth for the offset; low for a model, which may be unlike any other."""
    offset_strongest: float = 40.0
    """What a shipped offset is worth at most."""
    spread_concentration: tuple[float, float, float] = (30.0, 15.0, 15.0)
    mixture_half_life: float = 100.0
    mixture_concentration: tuple[float, float, float] = (20.0, 20.0, 20.0)
    base_share: float = 0.9
    """Share of the base in the mixture before anything was learned."""
    pit_half_life: float = 200.0
    pit_concentration: tuple[float, float, float] = (10.0, 10.0, 10.0)
    conformal_outcomes: float = 0.4
    """What is added above all outcomes of a key: of few, the largest is not yet the largest to come."""
    settling_outcomes: float = 6.0
    """Outcomes after which the offset of a new model is taken to be half found."""
    steering_gain: float = 0.003
    """How much an outcome moves the steered levels, at each level of keys."""
    max_worlds: int = 1
    """Fleets that learn apart from each other, for evaluation over many orders at once."""


@dataclass(frozen=True, slots=True)
class Refined:
    """Answers to N questions."""

    probabilities: FloatArray
    """float64[N, K]: bin masses of the whole length, right once conditioned on the tokens that are out."""
    from_histogram: NDArray[np.bool_]
    """[N] True where the running histogram has more say than the base: the base misses."""
    coverage_p90: FloatArray
    """[N] Realised coverage of the declared P90 for the key; 0: not known, a known one is never 0."""


@dataclass(frozen=True, slots=True)
class _Forecast:
    """The way from base masses to the answer; all given that more than `generated` tokens come."""

    generated: FloatArray
    mean: FloatArray
    variance: FloatArray
    shipped: FloatArray
    concentration: FloatArray
    offset: FloatArray
    parts: FloatArray
    """[2, N, K]: stretched base, histogram."""
    base_share: FloatArray
    mixed_cdf: FloatArray
    table: FloatArray
    answer: FloatArray
    """[N, K]: recalibrated CDF."""


class OnlineLengths:
    """Refines base predictions and learns from outcomes. Not thread-safe: one owner, one thread."""

    def __init__(self, params: CalibrationParams | None = None, offsets: ShippedOffsets = NO_OFFSETS) -> None:
        self.params = p = params or CalibrationParams()
        self._offsets = offsets
        many = p.histogram
        self._fleets = KeyRows(p.max_worlds)
        self._models = KeyRows(max(many.max_models, p.max_worlds))
        self._apps = KeyRows(max(many.max_keys, p.max_worlds))
        self._first_app = 1 + self._fleets.capacity + self._models.capacity
        keep_lengths = np.concatenate([np.full(K, many.half_life_outcomes), np.full(2, p.offset_half_life)])
        self._lengths = Evidence(K + 2, _keep(keep_lengths))
        keep_calibration = np.append(np.full(PIT_BINS, p.pit_half_life), p.mixture_half_life)
        self._calibration = Evidence(PIT_BINS + 1, _keep(keep_calibration))
        self._drift = Drift(many.coverage_half_life_outcomes, many.coverage_min_outcomes)
        self._steer: FloatArray = np.zeros((0, len(LEVELS)))
        self._c_lengths = np.empty((3, K + 2))
        self._c_lengths[:, :K] = many.concentration_outcomes
        self._c_lengths[:, K] = p.offset_concentration
        self._c_lengths[:, K + 1] = p.spread_concentration
        self._c_calibration = np.empty((3, PIT_BINS + 1))
        self._c_calibration[:, :PIT_BINS] = np.array(p.pit_concentration)[:, None]
        self._c_calibration[:, PIT_BINS] = p.mixture_concentration
        self._length_prior = np.concatenate([prior(many), [0.0, 1.0]])
        self._calibration_prior = np.append(IDENTITY, p.base_share)
        self._asked: dict[
            tuple[LengthKey, int, bytes], tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]
        ] = {}
        self._grow(self._first_app + min(16, self._apps.capacity))

    @property
    def observed(self) -> int:
        """Outcomes learned from in all."""
        return sum(self._drift.observed(row + 1) for row in self._fleets.rows())

    def observed_of(self, model: str, app: str | None = None, world: int = 0) -> int:
        """Outcomes learned from of a model, or of a model and an app; 0 once it was dropped."""
        return self._drift.observed(
            int(self._paths([(model, app or "")], [world])[0, 1 if app is None else 2])
        )

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
        paths = self._paths(keys, worlds)
        forecast = self._forecast(base, keys, np.asarray(generated, dtype=np.float64), paths, usable)
        return Refined(
            _whole(forecast.answer, forecast.generated),
            forecast.base_share < 0.5,
            self._drift.coverage_p90(paths[:, 2]),
        )

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
        self._offsets = offsets
        self._asked.clear()
        self._lengths.sums[:, K:] = self._lengths.weights[:, K:] = 0.0
        self._calibration.clear(slice(None))
        self._steer[:] = 0.0
        self._drift.forget()

    def report(self, model: str | None = None, app: str | None = None, world: int = 0) -> DriftReport:
        """Drift of a pair, a model, or all."""
        level = 0 if model is None else 1 if app is None else 2
        row = int(self._paths([(model or "", app or "")], [world])[0, level])
        return self._drift.report(row)

    @property
    def keys(self) -> list[LengthKey]:
        """(model, app) pairs that are kept, the one observed longest ago first."""
        return list(self._apps)

    def snapshot(self) -> Callable[[], bytes]:
        """The state of this moment; the call that turns it into bytes may be made in another thread."""
        levels = ((self._fleets, 1), (self._models, 1 + self._fleets.capacity), (self._apps, self._first_app))
        rows = np.array([first + row for table, first in levels for row in table.rows()], dtype=np.int64)
        places = (rows[:, None] * len(BUCKETS) + np.arange(len(BUCKETS))).ravel()
        arrays = [array[rows] for array in self._by_row()] + [array[places] for array in self._by_place()]
        header = {
            "edges": EDGES.tolist(),
            "pit": PIT_EDGES.tolist(),
            "keys": [list(table) for table, _ in levels],
        }
        return lambda: pack(_MAGIC, header, arrays)

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
        read = Unpacker(_MAGIC, state, "the calibration of lengths")
        learner = cls(params, offsets)
        keys = read.header.get("keys")
        if read.header.get("edges") != EDGES.tolist() or read.header.get("pit") != PIT_EDGES.tolist():
            raise StateError("the saved state has other bins")
        if not _are_keys(keys):
            raise StateError("the saved state does not name its keys")
        saved = [(level, (key[0], key[1])) for level, table in enumerate(keys) for key in table]
        by_row = [read.array(len(saved), *array.shape[1:]) for array in learner._by_row()]
        by_place = [read.array(len(saved), len(BUCKETS), *array.shape[1:]) for array in learner._by_place()]
        for i, (level, key) in enumerate(saved):
            row = learner._take(level, key)
            for array, values in zip(learner._by_row(), by_row, strict=True):
                array[row] = values[i]
            for array, values in zip(learner._by_place(), by_place, strict=True):
                array[row * len(BUCKETS) : (row + 1) * len(BUCKETS)] = values[i]
        return learner

    def _by_row(self) -> list[FloatArray]:
        drift = self._drift
        return [self._lengths.sums, self._lengths.weights, drift.sums, drift.weights, drift.counts]

    def _by_place(self) -> list[FloatArray]:
        return [self._calibration.sums, self._calibration.weights, self._steer]

    def _forecast(
        self,
        base: FloatArray,
        keys: Sequence[LengthKey],
        generated: FloatArray,
        paths: Rows,
        usable: NDArray[np.bool_] | None,
    ) -> _Forecast:
        g = np.clip(generated, 0.0, OPEN_EDGE - 1)
        known = self._known_of(keys, paths, g)
        shipped, concentration, learned, calibration, table = known
        missing = None if usable is None or usable.all() else ~usable
        mass = _distributions(base if missing is None else np.where(missing[:, None], TAIL, base))
        mean, variance = log_moments(mass)
        offset = shipped + learned[:, K]
        scale = np.clip(np.sqrt(learned[:, K + 1]), *_SCALES)
        parts = np.stack([stretched(mass, mean, offset, scale), learned[:, :K]])
        if g.any():
            parts = _given(parts, g)
        share = calibration[:, PIT_BINS]
        if missing is not None:
            share = np.where(missing, 0.0, share)
        mixed = share[:, None] * parts[0] + (1 - share[:, None]) * parts[1]
        mixed_cdf = np.minimum(np.cumsum(mixed, axis=1), 1.0)
        mixed_cdf[:, -1] = 1.0
        return _Forecast(
            g, mean, variance, shipped, concentration, learned[:, K], parts, share, mixed_cdf, table,
            recalibrated(mixed_cdf, table),
        )  # fmt: skip

    def _known_of(
        self, keys: Sequence[LengthKey], paths: Rows, g: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
        """What is known of keys after g tokens: shipped offsets, concentrations, lengths, calibration, map.

        Kept for single questions until the next outcome: of a live request the same is asked again and again.
        """
        buckets = np.searchsorted(_BUCKET_ENDS, g, side="right")
        asked = (keys[0], int(buckets[0]), paths.tobytes()) if len(keys) == 1 else None
        if asked is not None and (kept := self._asked.get(asked)) is not None:
            return kept
        shipped, concentration = self._shipped(keys)
        learned = self._lengths.mean(paths, self._length_prior, concentration)
        places = paths * len(BUCKETS) + buckets[:, None]
        calibration = self._calibration.mean(places, self._calibration_prior, self._c_calibration)
        shares = calibration[:, :PIT_BINS]
        known = self._calibration.weights[places[:, -1], 0] + self._c_calibration[-1, 0]
        shares[:, -1] += self.params.conformal_outcomes / known
        table = pit_map(shares, self._steer[places].sum(axis=1))
        known = (shipped, concentration, learned, calibration, table)
        if asked is not None:
            if len(self._asked) >= _MOST_ASKED:
                self._asked.clear()
            self._asked[asked] = known
        return known

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
        told = np.where(censored, lengths > np.maximum(generated, 0), lengths > generated)
        told &= np.isfinite(base).all(axis=1) & (base >= 0).all(axis=1) & (base.sum(axis=1) > 0)
        if not told.all():
            at = np.flatnonzero(told).tolist()
            if at:
                self._learn(
                    base[at], [keys[i] for i in at], generated[at], lengths[at], censored[at], limits[at],
                    declared[at], None if worlds is None else [worlds[i] for i in at], usable[at],
                )  # fmt: skip
            return
        paths = self._claim(keys, worlds)
        f = self._forecast(base, keys, generated, paths, usable)
        self._asked.clear()
        p, g = self.params, f.generated
        n = len(keys)
        rows = np.arange(n)
        bins = np.minimum(np.searchsorted(EDGES, lengths, side="left"), K - 1)
        # What the length was, or may have become.
        outcome = np.zeros((n, K))
        outcome[rows, bins] = 1.0
        log_length = np.log(np.maximum(lengths, 1.0))
        log_square = log_length**2
        likelihood = f.parts[:, rows, bins]
        if censored.any():
            beyond = np.clip((UPPER - lengths[:, None]) / (UPPER - np.maximum(LOWER, g[:, None])), 0.0, 1.0)
            later = beyond * np.maximum(np.diff(f.answer, axis=1, prepend=0.0), 1e-9 * TAIL)
            later /= later.sum(axis=1, keepdims=True)
            outcome[censored] = later[censored]
            log_length = np.where(censored, later @ LOG_MIDDLE, log_length)
            log_square = np.where(censored, later @ LOG_MIDDLE**2, log_square)
            likelihood = np.where(censored, (f.parts * beyond).sum(axis=2), likelihood)
        first = g == 0
        settled = self._settled(paths, f.concentration)
        residual = log_length - f.mean - f.shipped
        off = residual - f.offset
        spread = log_square - log_length**2 + off**2
        values = np.empty((n, K + 2))
        values[:, :K] = outcome
        values[:, K] = f.offset + np.clip(off, -_FARTHEST, _FARTHEST)
        values[:, K + 1] = np.minimum(spread / f.variance, _FARTHEST_SQUARES)
        weight = np.repeat(first[:, None].astype(np.float64), K + 2, axis=1)
        weight[:, K:] *= usable[:, None]
        self._lengths.add(paths, values, weight)

        likelihood = likelihood + 1e-3 * TAIL[bins]
        weighed = np.stack([f.base_share, 1 - f.base_share]) * likelihood
        u = _cdf_at(f.mixed_cdf, lengths, g)
        buckets = np.searchsorted(_BUCKET_ENDS, g, side="right")
        places = paths * len(BUCKETS) + buckets[:, None]
        values = np.empty((n, PIT_BINS + 1))
        values[:, :PIT_BINS] = pit_shares(u, censored, f.table)
        values[:, PIT_BINS] = weighed[0] / weighed.sum(axis=0)
        weight = np.empty((n, PIT_BINS + 1))
        weight[:, :PIT_BINS] = settled[:, None]
        weight[:, PIT_BINS] = usable
        self._calibration.add(places, values, weight)

        final = _cdf_at(f.answer, lengths, g)
        most = np.where(limits < OPEN_EDGE, _cdf_at(f.answer, limits, g), 2.0)
        hits = _hits(final[:, None] <= LEVELS, final[:, None] >= LEVELS, censored, most[:, None] > LEVELS)
        known = ~np.isnan(hits)
        step = p.steering_gain * np.where(known, LEVELS - np.nan_to_num(hits), 0.0)
        self._steer[places] = np.clip(
            self._steer[places] + step[:, None, :], -_FARTHEST_STEER, _FARTHEST_STEER
        )

        said = ~np.isnan(declared)
        there = _hits(
            lengths[:, None] <= declared, lengths[:, None] >= declared, censored, declared < limits[:, None]
        )
        self._drift.add(
            paths,
            np.where(said, there, hits),
            np.where(censored, np.nan, final),
            np.where(usable, off, np.nan),
            _width(f.answer, g),
        )

    def _settled(self, paths: Rows, concentration: FloatArray) -> FloatArray:
        """How far the offset of each path has been found, from 0 to 1: a PIT from before says little about one after.

        n outcomes at a level, on top of a level above that rests on m of them and is worth c: n + c m / (c + m).
        """
        weights = self._lengths.weights[paths, 0]
        c = concentration[..., K]
        behind = np.where(c[..., 1] >= self.params.offset_strongest / 2, np.inf, weights[:, 0])
        for level in (1, 2):
            parent = c[..., level]
            worth = np.where(np.isinf(behind), parent, parent * behind / (parent + behind))
            behind = weights[:, level] + worth
        return np.asarray(behind / (behind + self.params.settling_outcomes))

    def _shipped(self, keys: Sequence[LengthKey]) -> tuple[FloatArray, FloatArray]:
        """Shipped offsets [N], and what each level's parent is worth, [3, K + 2] or [N, 3, K + 2]."""
        if not self._offsets.models:
            return np.zeros(len(keys)), self._c_lengths
        told = np.array([self._offsets.of(*key) for key in keys]).reshape(len(keys), 3)
        strongest = np.minimum(told[:, 1:], self.params.offset_strongest)
        concentration = np.repeat(self._c_lengths[None], len(keys), axis=0)
        concentration[:, 1:, K] = np.maximum(concentration[:, 1:, K], strongest)
        return told[:, 0], concentration

    def _paths(self, keys: Sequence[LengthKey], worlds: Sequence[int] | None) -> Rows:
        """Rows of fleet, model and app for each key, int64[N, 3]; BLANK for what is not known."""
        models, apps = 1 + self._fleets.capacity, self._first_app
        out = []
        for i, (model, app) in enumerate(keys):
            world = 0 if worlds is None else worlds[i]
            name = model if world == 0 else f"{world}\0{model}"
            fleet, by_model, by_app = (
                self._fleets.get((str(world), "")),
                self._models.get((name, "")),
                self._apps.get((name, app)),
            )
            out.append(
                (
                    BLANK if fleet < 0 else 1 + fleet,
                    BLANK if by_model < 0 else models + by_model,
                    BLANK if by_app < 0 else apps + by_app,
                )
            )
        return np.array(out, dtype=np.int64).reshape(len(keys), 3)

    def _claim(self, keys: Sequence[LengthKey], worlds: Sequence[int] | None) -> Rows:
        """As `_paths`, with rows for all."""
        paths = np.empty((len(keys), 3), dtype=np.int64)
        for i, (model, app) in enumerate(keys):
            world = 0 if worlds is None else worlds[i]
            name = model if world == 0 else f"{world}\0{model}"
            paths[i] = (
                self._take(0, (str(world), "")),
                self._take(1, (name, "")),
                self._take(2, (name, app)),
            )
        return paths

    def _take(self, level: int, key: Key) -> int:
        """The row of a key, empty when it is newly its own."""
        table, first = (
            (self._fleets, 1),
            (self._models, 1 + self._fleets.capacity),
            (self._apps, self._first_app),
        )[level]
        row, new = table.take(key)
        row += first
        if row >= len(self._lengths.sums):
            self._grow(min(2 * row, self._first_app + self._apps.capacity))
        if new:
            self._clear(row)
        return row

    def _grow(self, rows: int) -> None:
        self._lengths.grow(rows)
        self._calibration.grow(rows * len(BUCKETS))
        self._drift.grow(rows)
        more = rows * len(BUCKETS) - len(self._steer)
        self._steer = np.concatenate([self._steer, np.zeros((more, len(LEVELS)))])

    def _clear(self, row: int) -> None:
        places = slice(row * len(BUCKETS), (row + 1) * len(BUCKETS))
        self._lengths.clear(row)
        self._calibration.clear(places)
        self._steer[places] = 0.0
        self._drift.clear(row)


_TAIL_SHARE = TAIL_MIX * TAIL
_BUCKET_ENDS = np.array(BUCKETS[1:], dtype=np.float64)
_SCALES = (0.3, 3.0)
"""A base is never taken to be further off in its spread."""
_FARTHEST = 3.0
"""Log residuals past it are drawn in: one answer of 30,000 tokens is no new model."""
_FARTHEST_SQUARES = 9.0
_FARTHEST_STEER = 0.15
_MOST_ASKED = 512


def _are_keys(keys: object) -> TypeGuard[list[list[list[str]]]]:
    return (
        isinstance(keys, list)
        and len(keys) == 3
        and all(isinstance(table, list) for table in keys)
        and all(
            isinstance(key, list) and [type(part) for part in key] == [str, str]
            for table in keys
            for key in table
        )
    )


def _keep(half_life: FloatArray | float) -> FloatArray:
    return np.asarray(0.5 ** (1 / np.asarray(half_life, dtype=np.float64)))


def _distributions(base: FloatArray) -> FloatArray:
    """Checked and scaled to sum to 1, with the tail every reader mixes in."""
    mass = np.asarray(base, dtype=np.float64)
    total = mass.sum(axis=1, keepdims=True)
    if mass.shape[1] != K or not np.isfinite(total).all() or mass.min(initial=0.0) < 0 or (total <= 0).any():
        raise ValueError("bin masses must be finite, not negative, and not all zero")
    return np.asarray((1 - TAIL_MIX) / total * mass + TAIL_MIX * TAIL)


def _given(parts: FloatArray, generated: FloatArray) -> FloatArray:
    """Bin masses [..., N, K] given that more than `generated` [N] tokens come."""
    ahead = np.clip((UPPER - generated[:, None]) / (UPPER - LOWER), 0.0, 1.0)
    left = parts * ahead + 1e-12 * TAIL * ahead
    return np.asarray(left / left.sum(axis=-1, keepdims=True))


def _cdf_at(cdf: FloatArray, lengths: FloatArray, generated: FloatArray) -> FloatArray:
    """P(L <= x) [N] of CDFs [N, K] that begin at `generated`."""
    k = np.minimum(np.searchsorted(UPPER, lengths, side="left"), K - 1)
    rows = np.arange(len(cdf))
    below = np.where(k > 0, cdf[rows, k - 1], 0.0)
    low = np.maximum(LOWER[k], generated)
    share = np.clip((lengths - low) / np.maximum(UPPER[k] - low, 1e-9), 0.0, 1.0)
    return np.asarray(below + share * (cdf[rows, k] - below))


def _whole(cdf: FloatArray, generated: FloatArray) -> FloatArray:
    """Bin masses of the whole length which, conditioned on `generated` and with the heavy tail mixed in as all readers
    do, have these CDFs."""
    mass = cdf.copy()
    mass[:, 1:] -= cdf[:, :-1]
    if not generated.any():
        mass = np.maximum(mass - _TAIL_SHARE, 0.0)
        return np.asarray(mass / mass.sum(axis=1, keepdims=True))
    ahead = np.clip((UPPER - generated[:, None]) / (UPPER - LOWER), 0.0, 1.0)
    tail = TAIL_MIX * TAIL * ahead
    mass = np.maximum(mass * (1 - TAIL_MIX + tail.sum(axis=1, keepdims=True)) - tail, 0.0)
    mass = np.where(ahead > 0, mass / np.maximum(ahead, 1e-12), 0.0)
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def _hits(
    within: NDArray[np.bool_], past: NDArray[np.bool_], censored: NDArray[np.bool_], counts: NDArray[np.bool_]
) -> FloatArray:
    """1 within the bound, 0 past it, nan where that is hidden: cut before the bound, or a bound clipped by a limit."""
    known = counts & (~censored[:, None] | past)
    return np.where(known, np.where(censored[:, None], 0.0, within), np.nan)


def _width(cdf: FloatArray, generated: FloatArray) -> FloatArray:
    """Log of P90 / P50, to within a bin."""
    return np.asarray(
        LOG_MIDDLE[np.minimum((cdf < 0.9).sum(axis=1), K - 1)]
        - LOG_MIDDLE[np.minimum((cdf < 0.5).sum(axis=1), K - 1)]
    )


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
