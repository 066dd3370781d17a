"""All that has been learned, per fleet, model and app: where it is kept, and what follows from it for a key."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np

from paceline_core.calibration.drift import Drift
from paceline_core.calibration.evidence import BLANK, Evidence, Rows
from paceline_core.calibration.forecast import Known
from paceline_core.calibration.kept import KeptKnown, Place
from paceline_core.calibration.offset import ShippedOffsets
from paceline_core.calibration.params import BUCKETS, CalibrationParams, LengthKey
from paceline_core.calibration.recalibration import IDENTITY, LEVELS, PIT_BINS, PIT_EDGES, pit_map
from paceline_core.histogram import prior
from paceline_core.key_rows import Key, KeyRows
from paceline_core.lengths import EDGES, FloatArray, K
from paceline_core.saved_state import StateError, Unpacker, pack

_MAGIC = b"PLO1"


class Learned:
    """Rows of a fleet, a model and an app each hold evidence, steered levels and scores. A path is the three rows of a
    key; a place is a row at a progress bucket."""

    def __init__(self, p: CalibrationParams, offsets: ShippedOffsets) -> None:
        self.params = p
        self.offsets = offsets
        many = p.histogram
        self._fleets = KeyRows(p.max_worlds)
        self._models = KeyRows(max(many.max_models, p.max_worlds))
        self._apps = KeyRows(max(many.max_keys, p.max_worlds))
        self._first_app = 1 + self._fleets.capacity + self._models.capacity
        keep_lengths = np.concatenate([np.full(K, many.half_life_outcomes), np.full(2, p.offset_half_life)])
        self.lengths = Evidence(K + 2, _keep(keep_lengths))
        keep_calibration = np.append(np.full(PIT_BINS, p.pit_half_life), p.mixture_half_life)
        self.calibration = Evidence(PIT_BINS + 1, _keep(keep_calibration))
        self.drift = Drift(many.coverage_half_life_outcomes, many.coverage_min_outcomes)
        self.steer: FloatArray = np.zeros((0, len(LEVELS)))
        self._c_lengths = np.empty((3, K + 2))
        self._c_lengths[:, :K] = many.concentration_outcomes
        self._c_lengths[:, K] = p.offset_concentration
        self._c_lengths[:, K + 1] = p.spread_concentration
        self._c_calibration = np.empty((3, PIT_BINS + 1))
        self._c_calibration[:, :PIT_BINS] = np.array(p.pit_concentration)[:, None]
        self._c_calibration[:, PIT_BINS] = p.mixture_concentration
        self._length_prior = np.concatenate([prior(many), [0.0, 1.0]])
        self._calibration_prior = np.append(IDENTITY, p.base_share)
        self._kept = KeptKnown()
        self._grow(self._first_app + min(16, self._apps.capacity))

    @property
    def observed(self) -> int:
        """Outcomes learned from in all."""
        return sum(self.drift.observed(row + 1) for row in self._fleets.rows())

    @property
    def keys(self) -> list[LengthKey]:
        """(model, app) pairs that are kept, the one observed longest ago first."""
        return list(self._apps)

    def changed(self) -> None:
        """Something was learned: what `known` keeps is out of date."""
        self._kept.clear()

    def forget_base(self, offsets: ShippedOffsets) -> None:
        """Keep the histograms, and nothing of what was learned about the base."""
        self.offsets = offsets
        self.lengths.sums[:, K:] = self.lengths.weights[:, K:] = 0.0
        self.calibration.clear(slice(None))
        self.steer[:] = 0.0
        self.drift.forget()
        self.changed()

    def places(self, paths: Rows, generated: FloatArray) -> Rows:
        """[N, 3] Where the evidence of each path stands after `generated` [N] tokens."""
        buckets = np.searchsorted(_BUCKET_ENDS, generated, side="right")
        return np.asarray(paths * len(BUCKETS) + buckets[:, None])

    def asked(
        self, keys: Sequence[LengthKey], generated: FloatArray, worlds: Sequence[int] | None
    ) -> tuple[Known, FloatArray]:
        """What is known of N keys, and the coverages [N] of their P90."""
        if worlds is not None or not keys:
            return self._work_out(self.paths(keys, worlds), keys, generated)
        buckets = [bisect_right(BUCKETS, out, 1) - 1 for out in generated.tolist()]
        return self._kept.read(list(zip(keys, buckets, strict=True)), self._of_places)

    def known(self, keys: Sequence[LengthKey], paths: Rows, generated: FloatArray) -> Known:
        """What is known of N keys."""
        places = self.places(paths, generated)
        shipped, concentration = self._shipped(keys)
        learned = self.lengths.mean(paths, self._length_prior, concentration)
        calibration = self.calibration.mean(places, self._calibration_prior, self._c_calibration)
        shares = calibration[:, :PIT_BINS]
        behind = self.calibration.weights[places[:, -1], 0] + self._c_calibration[-1, 0]
        shares[:, -1] += self.params.conformal_outcomes / behind
        return Known(
            shipped=shipped,
            offset=learned[:, K],
            scale=np.clip(np.sqrt(learned[:, K + 1]), *_SCALES),
            histogram=np.add.accumulate(learned[:, :K], axis=1),
            base_share=calibration[:, PIT_BINS],
            table=pit_map(shares, self.steer[places].sum(axis=1)),
            settled=self._settled(paths, concentration),
        )

    def _of_places(self, places: Sequence[Place]) -> tuple[Known, FloatArray]:
        keys = [key for key, _ in places]
        generated = np.array([BUCKETS[bucket] for _, bucket in places], dtype=np.float64)
        return self._work_out(self.paths(keys, None), keys, generated)

    def _work_out(
        self, paths: Rows, keys: Sequence[LengthKey], generated: FloatArray
    ) -> tuple[Known, FloatArray]:
        return self.known(keys, paths, generated), self.drift.coverage_p90(paths[:, 2])

    def paths(self, keys: Sequence[LengthKey], worlds: Sequence[int] | None) -> Rows:
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

    def claim(self, keys: Sequence[LengthKey], worlds: Sequence[int] | None) -> Rows:
        """As `paths`, with rows for all."""
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
        if row >= len(self.lengths.sums):
            self._grow(min(2 * row, self._first_app + self._apps.capacity))
        if new:
            self._clear(row)
        return row

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

    def load(self, state: bytes) -> None:
        """Fill the empty tables from a saved state. Raises StateError."""
        read = Unpacker(_MAGIC, state, "the calibration of lengths")
        keys = read.header.get("keys")
        if read.header.get("edges") != EDGES.tolist() or read.header.get("pit") != PIT_EDGES.tolist():
            raise StateError("the saved state has other bins")
        if not _are_keys(keys):
            raise StateError("the saved state does not name its keys")
        saved = [(level, (key[0], key[1])) for level, table in enumerate(keys) for key in table]
        by_row = [read.array(len(saved), *array.shape[1:]) for array in self._by_row()]
        by_place = [read.array(len(saved), len(BUCKETS), *array.shape[1:]) for array in self._by_place()]
        if any((array < 0).any() for array in (by_row[1], by_row[3], by_row[4], by_place[1])):
            raise StateError("the saved state holds weights that no outcomes give")
        for i, (level, key) in enumerate(saved):
            row = self._take(level, key)
            for array, values in zip(self._by_row(), by_row, strict=True):
                array[row] = values[i]
            for array, values in zip(self._by_place(), by_place, strict=True):
                array[row * len(BUCKETS) : (row + 1) * len(BUCKETS)] = values[i]

    def _by_row(self) -> list[FloatArray]:
        drift = self.drift
        return [self.lengths.sums, self.lengths.weights, drift.sums, drift.weights, drift.counts]

    def _by_place(self) -> list[FloatArray]:
        return [self.calibration.sums, self.calibration.weights, self.steer]

    def _settled(self, paths: Rows, concentration: FloatArray) -> FloatArray:
        """How far the offset of each path has been found, from 0 to 1: a PIT from before says little about one after.

        n outcomes at a level, on top of a level above that rests on m of them and is worth c: n + c m / (c + m).
        """
        weights = self.lengths.weights[paths, 0]
        c = concentration[..., K]
        behind = np.where(c[..., 1] >= self.params.offset_strongest / 2, _ENOUGH, weights[:, 0])
        for level in (1, 2):
            parent = c[..., level]
            behind = weights[:, level] + parent * behind / (parent + behind)
        return np.asarray(behind / (behind + self.params.settling_outcomes))

    def _shipped(self, keys: Sequence[LengthKey]) -> tuple[FloatArray, FloatArray]:
        """Shipped offsets [N], and what each level's parent is worth, [3, K + 2] or [N, 3, K + 2]."""
        if not self.offsets.models:
            return np.zeros(len(keys)), self._c_lengths
        told = np.array([self.offsets.of(*key) for key in keys]).reshape(len(keys), 3)
        strongest = np.minimum(told[:, 1:], self.params.offset_strongest)
        concentration = np.repeat(self._c_lengths[None], len(keys), axis=0)
        concentration[:, 1:, K] = np.maximum(concentration[:, 1:, K], strongest)
        return told[:, 0], concentration

    def _grow(self, rows: int) -> None:
        self.lengths.grow(rows)
        self.calibration.grow(rows * len(BUCKETS))
        self.drift.grow(rows)
        more = rows * len(BUCKETS) - len(self.steer)
        self.steer = np.concatenate([self.steer, np.zeros((more, len(LEVELS)))])

    def _clear(self, row: int) -> None:
        places = slice(row * len(BUCKETS), (row + 1) * len(BUCKETS))
        self.lengths.clear(row)
        self.calibration.clear(places)
        self.steer[places] = 0.0
        self.drift.clear(row)


_BUCKET_ENDS = np.array(BUCKETS[1:], dtype=np.float64)
_SCALES = (0.3, 3.0)
"""A base is never taken to be further off in its spread."""
_ENOUGH = 1e9
"""Outcomes that a shipped offset rests on: more than any that come."""


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
