"""The caller's own live requests, by engine: what a policy needs to know whom a newcomer would hurt."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.estimates import LengthEstimates
from paceline_core.placement.view import Floats, RequestView
from paceline_core.slo import SloClass

Ints = NDArray[np.int64]

_FLOATS: Final = ("arrival_ms", "placed_ms", "due_ms", "ttft_ms", "tbt_ms", "first_mean")
_LONG_AGO: Final = -(1 << 40)
_MOST_TO_COME: Final = 256
_INTS: Final = ("engine", "prompt_tokens", "generated", "max_tokens", "moves", "checked")


@dataclass(frozen=True, slots=True)
class Residents:
    """Live requests as columns, one entry per row of the caller's table; rows not in use have `engine` -1.

    Instants are on the caller's monotonic clock. The arrays are the caller's own, valid until its next change.
    """

    key: NDArray[np.uint64]
    """Attempt key."""
    engine: Ints
    """Row of the engine in the fleet; -1: not in use."""
    prompt_tokens: Ints
    generated: Ints
    """Output tokens so far, all attempts."""
    max_tokens: Ints
    moves: Ints
    """How often it was moved."""
    checked: Ints
    """`generated` when it was last looked at for a move."""
    arrival_ms: Floats
    placed_ms: Floats
    due_ms: Floats
    """Last token due, an instant; infinite for latency and best effort."""
    ttft_ms: Floats
    """0 unless latency class."""
    tbt_ms: Floats
    """0 unless latency class."""
    first_mean: Floats
    """Output tokens expected in all, when it was placed."""
    lengths: LengthEstimates
    by_engine: Ints
    """[E, M] Rows of each engine's requests; only the first `count[e]` of a row are in use."""
    count: Ints
    """[E]"""

    def rows(self) -> Ints:
        """Rows in use."""
        return np.flatnonzero(self.engine >= 0)

    def tightest_tbt_ms(self, engines: int) -> Floats:
        """float64[E]: smallest TBT of each engine's requests; infinite without one."""
        tightest = np.full(engines, np.inf)
        rows = np.flatnonzero((self.engine >= 0) & (self.tbt_ms > 0))
        np.minimum.at(tightest, self.engine[rows], self.tbt_ms[rows])
        return tightest


class _LengthsToCome(LengthEstimates):
    """Estimates that are taken in when somebody reads any: many rows at once cost little more than one, and most
    policies never read them."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self._to_come: dict[int, tuple[Floats, int]] = {}

    def later(self, row: int, cdf: Floats, max_tokens: int) -> None:
        """A new CDF float64[K] of a row."""
        self._to_come[row] = (cdf, max_tokens)
        if len(self._to_come) >= _MOST_TO_COME:
            self._take_in()

    @property
    def cdf(self) -> NDArray[np.float32]:
        """See `LengthEstimates`; so for the others."""
        self._take_in()
        return super().cdf

    def mean_left(self, rows: Ints, generated: Ints) -> Floats:
        self._take_in()
        return super().mean_left(rows, generated)

    def upper_left(self, rows: Ints, generated: Ints) -> Floats:
        self._take_in()
        return super().upper_left(rows, generated)

    def quantile_left(self, rows: Ints, generated: Ints, level: float) -> Floats:
        self._take_in()
        return super().quantile_left(rows, generated, level)

    def p_within(self, rows: Ints, generated: Ints, more: Ints) -> Floats:
        self._take_in()
        return super().p_within(rows, generated, more)

    def _take_in(self) -> None:
        if not self._to_come:
            return
        came, self._to_come = self._to_come, {}
        cdf = np.array([one for one, _ in came.values()])
        limits = np.array([limit for _, limit in came.values()], dtype=np.int64)
        self.put(np.array(list(came), dtype=np.int64), cdf, limits)


class ResidentTable:
    """Fed by placements, progress and ends; rows are used again."""

    def __init__(self, rows: int = 64) -> None:
        self._row_of: dict[int, int] = {}
        self._free = list(range(rows - 1, -1, -1))
        self._floats: dict[str, Floats] = {name: np.zeros(rows) for name in _FLOATS}
        self._ints: dict[str, Ints] = {name: np.zeros(rows, dtype=np.int64) for name in _INTS}
        self._ints["engine"][:] = -1
        self._keys: NDArray[np.uint64] = np.zeros(rows, dtype=np.uint64)
        self._lengths = _LengthsToCome(rows)
        self._by_engine: Ints = np.zeros((8, 16), dtype=np.int64)
        self._count: Ints = np.zeros(8, dtype=np.int64)
        self._place: Ints = np.zeros(rows, dtype=np.int64)
        self._view: Residents | None = None
        """The last one, as long as its arrays are the table's."""

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, key: int) -> bool:
        return key in self._row_of

    def add(self, key: int, engine: int, request: RequestView, now_ms: float, moves: int = 0) -> None:
        """The request was placed. A key that is there already is replaced."""
        self.remove(key)
        if not self._free:
            self._grow()
        row = self._row_of[key] = self._free.pop()
        slo, ints, floats = request.slo, self._ints, self._floats
        arrival_ms = now_ms - request.elapsed_ms
        latency = slo.slo_class is SloClass.LATENCY
        self._keys[row] = key
        ints["engine"][row] = engine
        ints["prompt_tokens"][row] = request.prompt_tokens
        ints["generated"][row] = ints["checked"][row] = request.replayed_tokens
        ints["max_tokens"][row] = request.max_tokens
        ints["moves"][row] = moves
        floats["arrival_ms"][row] = arrival_ms
        floats["placed_ms"][row] = now_ms
        floats["due_ms"][row] = now_ms + request.left_ms
        floats["ttft_ms"][row] = slo.ttft_ms if latency else 0.0
        floats["tbt_ms"][row] = slo.tbt_ms if latency else 0.0
        floats["first_mean"][row] = request.mean_tokens
        self._put_lengths(row, request.length_cdf)
        self._join(row, engine)

    def progressed(self, key: int, generated: int) -> int:
        """So many output tokens are out. Returns how many were before; -1 for a key that is not there."""
        row = self._row_of.get(key)
        if row is None:
            return -1
        before = int(self._ints["generated"][row])
        self._ints["generated"][row] = generated
        return before

    def reestimated(self, key: int, cdf: Floats) -> None:
        """A newer length distribution, float64[K]."""
        row = self._row_of.get(key)
        if row is not None:
            self._put_lengths(row, cdf)

    def checked(self, rows: Ints) -> None:
        """These rows were looked at for a move."""
        self._ints["checked"][rows] = self._ints["generated"][rows]

    def due(self, key: int) -> None:
        """The next look for moves takes it in, whatever it wrote since the last one."""
        row = self._row_of.get(key)
        if row is not None:
            self._ints["checked"][row] = _LONG_AGO

    def remove(self, key: int) -> None:
        """It ended, or left; nothing happens when it is not there."""
        row = self._row_of.pop(key, None)
        if row is None:
            return
        engine = int(self._ints["engine"][row])
        last = int(self._count[engine]) - 1
        moved = int(self._by_engine[engine, last])
        at = int(self._place[row])
        self._by_engine[engine, at] = moved
        self._place[moved] = at
        self._count[engine] = last
        self._ints["engine"][row] = -1
        self._free.append(row)

    def row_of(self, key: int) -> int | None:
        """Its row; None when it is not there."""
        return self._row_of.get(key)

    def view(self, engines: int) -> Residents:
        """The table as policies see it, for a fleet of `engines`."""
        if engines > len(self._count):
            self._reserve_engine(engines - 1)
        if self._view is not None and len(self._view.count) == engines:
            return self._view
        columns: dict[str, Any] = {"key": self._keys, **self._ints, **self._floats}
        self._view = Residents(
            **columns,
            lengths=self._lengths,
            by_engine=self._by_engine[:engines],
            count=self._count[:engines],
        )
        return self._view

    def _put_lengths(self, row: int, cdf: Floats) -> None:
        self._lengths.later(row, cdf, int(self._ints["max_tokens"][row]))

    def _join(self, row: int, engine: int) -> None:
        if engine >= len(self._count):
            self._reserve_engine(engine)
        at = int(self._count[engine])
        if at == self._by_engine.shape[1]:
            self._by_engine = np.concatenate([self._by_engine, np.zeros_like(self._by_engine)], axis=1)
            self._view = None
        self._by_engine[engine, at] = row
        self._place[row] = at
        self._count[engine] = at + 1

    def _reserve_engine(self, engine: int) -> None:
        self._view = None
        more = max(len(self._count), engine + 1 - len(self._count))
        width = self._by_engine.shape[1]
        self._by_engine = np.concatenate([self._by_engine, np.zeros((more, width), dtype=np.int64)])
        self._count = np.concatenate([self._count, np.zeros(more, dtype=np.int64)])

    def _grow(self) -> None:
        self._view = None
        have = len(self._place)
        self._floats = {name: np.concatenate([c, np.zeros_like(c)]) for name, c in self._floats.items()}
        self._ints = {name: np.concatenate([c, np.zeros_like(c)]) for name, c in self._ints.items()}
        self._ints["engine"][have:] = -1
        self._place = np.concatenate([self._place, np.zeros_like(self._place)])
        self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
        self._lengths.grow(2 * have)
        self._free = list(range(2 * have - 1, have - 1, -1))
