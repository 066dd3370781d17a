"""Patterns of finished tasks: a bounded set of medoids, each standing for a decaying number of tasks.

A task that is like a pattern of its application adds to its weight; another one becomes a pattern. When the library is
full it is thinned by reverse greedy k-medoids (Chrobak, Kenyon and Young, 2006): the pattern whose weight times
distance to its nearest neighbour is least leaves, and its weight goes there; one that is alone in its application is
simply forgotten when its weight has decayed. Time comes from outside, as unix seconds.
"""

import json
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.tasks.pattern import BYTES_A_PATTERN, LOG_OF_BYTE, A, P, Pattern, PatternTable

_MAGIC = b"PTL2"
_HEAD = struct.Struct("<4sII")
_KEPT_WHEN_THINNED: Final = 0.8
_LONELY: Final = 4.0
"""Squared log distance that a pattern is taken to have to other applications'."""
_STAGE_WEIGHT: Final = 4.0
"""Of the squared log ratio of stage counts against a mean attribute."""
_DECAY_STEP_S: Final = 30.0
_HALF_TRUSTED_TASKS: Final = 4.0
"""Tasks of an application at which each of them counts half."""


@dataclass(frozen=True, slots=True)
class LibraryParams:
    """How patterns are kept."""

    capacity: int = 500
    """Patterns at most."""
    keep_per_hour: float = 0.9
    """Weight left of a task after an hour."""
    alike: float = 0.02
    """Mean squared log difference of an attribute below which two tasks are one pattern (about 14 % in tokens)."""


class PatternLibrary:
    """The patterns of a deployment. Not thread-safe; `table` is a copy that is never changed."""

    def __init__(self, params: LibraryParams | None = None) -> None:
        self.params = params or LibraryParams()
        n = self.params.capacity
        self._cells = np.zeros((n, P, A + 1), dtype=np.uint8)
        self._stages = np.zeros(n, dtype=np.float32)
        self._apps = np.zeros(n, dtype=np.int64)
        self._weights = np.zeros(n)
        self._ids = np.zeros(n, dtype=np.uint64)
        self._shapes = np.zeros(n, dtype=np.uint32)
        self._size = 0
        self._next_id = 1
        self._decayed_s = 0.0
        self._view: tuple[PatternTable, NDArray[np.uint64]] | None = None
        self._trusted: PatternTable | None = None

    def __len__(self) -> int:
        return self._size

    def add(self, pattern: Pattern, now_s: float, shape: int = 0) -> None:
        """Learn from a finished task; `shape` is a checksum of its shape."""
        self._decay(now_s)
        self._view = self._trusted = None
        like = np.flatnonzero(
            (self._apps[: self._size] == pattern.app) & (self._stages[: self._size] == pattern.stages)
        )
        if len(like):
            one = (pattern.cells[None], np.array([pattern.stages], dtype=np.float32))
            distances = _distances(*one, self._cells[like], self._stages[like])[0]
            distances += 4.0 * (self._shapes[like] != shape)
            distances += 4.0 * (self._cells[like][..., A] != pattern.cells[None, :, A]).any(axis=1)
            best = int(np.argmin(distances))
            if distances[best] <= self.params.alike:
                self._weights[like[best]] += 1.0
                return
        if self._size == self.params.capacity:
            self._thin()
        at = self._size
        self._cells[at], self._stages[at], self._apps[at] = pattern.cells, pattern.stages, pattern.app
        self._weights[at], self._ids[at], self._shapes[at] = 1.0, self._next_id, shape
        self._next_id += 1
        self._size += 1

    def table(self) -> tuple[PatternTable, NDArray[np.uint64]]:
        """The patterns as they are now, and their ids, uint64[M]."""
        if self._view is None:
            n = self._size
            table = PatternTable(
                self._cells[:n].copy(),
                self._stages[:n].copy(),
                self._apps[:n].copy(),
                np.maximum(self._weights[:n], 1e-6).astype(np.float32),
            )
            self._view = table, self._ids[:n].copy()
        return self._view

    def trusted(self) -> PatternTable:
        """The same patterns; those of an application with few tasks weigh less than these.

        One or two tasks may be unlike all that follow: until there are some, what is usual elsewhere counts too.
        """
        if self._trusted is None:
            table, _ = self.table()
            _, group = np.unique(table.apps, return_inverse=True)
            tasks = np.bincount(group, weights=table.weights) if len(table) else np.zeros(0)
            trust = (tasks**2 / (tasks**2 + _HALF_TRUSTED_TASKS**2))[group]
            self._trusted = replace(table, weights=(table.weights * trust).astype(np.float32))
        return self._trusted

    def shapes(self) -> NDArray[np.uint32]:
        """Checksums of the patterns' shapes, uint32[M], in the order of `table`."""
        return self._shapes[: self._size].copy()

    def to_bytes(self) -> bytes:
        """All of it."""
        table, ids = self.table()
        head = {"n": len(table), "next": self._next_id, "at": self._decayed_s, "layout": [P, A]}
        header = json.dumps(head, separators=(",", ":")).encode()
        columns = (table.cells, table.stages, table.apps, table.weights, ids, self.shapes())
        body = b"".join([header, *(np.ascontiguousarray(x).tobytes() for x in columns)])
        return _HEAD.pack(_MAGIC, zlib.crc32(body), len(header)) + body

    @classmethod
    def from_bytes(cls, state: bytes, params: LibraryParams | None = None) -> "PatternLibrary":
        """Reads `to_bytes`; the weightiest stay when the capacity is smaller now. Raises ValueError."""
        if len(state) < _HEAD.size or state[:4] != _MAGIC:
            raise ValueError("not a saved pattern library, or of another version")
        _, checksum, size = _HEAD.unpack_from(state)
        if zlib.crc32(memoryview(state)[_HEAD.size :]) != checksum:
            raise ValueError("the saved patterns are damaged: their checksum does not fit")
        at = _HEAD.size + size
        try:
            head = json.loads(state[_HEAD.size : at])
            n, next_id, decayed_s = int(head["n"]), int(head["next"]), float(head["at"])
            if head["layout"] != [P, A]:
                raise ValueError("the saved patterns have another layout")
            if n < 0 or len(state) != at + n * (BYTES_A_PATTERN + 4 + 8 + 4 + 8 + 4):
                raise ValueError("the saved patterns have another size than they say")
        except (KeyError, TypeError) as error:
            raise ValueError(f"the saved patterns have no header: {error!r}") from None

        def column(kind: str, count: int) -> NDArray[Any]:
            nonlocal at
            array = np.frombuffer(state, kind, count, at)
            at += array.nbytes
            return array

        cells = column("u1", n * BYTES_A_PATTERN).reshape(n, P, A + 1)
        stages, apps, weights, ids = column("<f4", n), column("<i8", n), column("<f4", n), column("<u8", n)
        shapes = column("<u4", n)
        if not (np.isfinite(stages).all() and np.isfinite(weights).all()):
            raise ValueError("the saved patterns hold numbers that no tasks give")
        library = cls(params)
        kept = np.sort(np.argsort(-weights, kind="stable")[: library.params.capacity])
        m = len(kept)
        library._cells[:m], library._stages[:m], library._apps[:m] = cells[kept], stages[kept], apps[kept]
        library._weights[:m], library._ids[:m] = weights[kept], ids[kept]
        library._shapes[:m] = shapes[kept]
        library._size, library._next_id, library._decayed_s = m, next_id, decayed_s
        return library

    def _decay(self, now_s: float) -> None:
        if not self._decayed_s:
            self._decayed_s = now_s
        passed_s = now_s - self._decayed_s
        # A clock that was set back changes nothing until it has caught up.
        if passed_s >= _DECAY_STEP_S:
            self._weights[: self._size] *= self.params.keep_per_hour ** (passed_s / 3600.0)
            self._decayed_s = now_s

    def _thin(self) -> None:
        """Let go of the patterns that are missed least."""
        n = self._size
        alive = np.ones(n, dtype=np.bool_)
        distances = _distances(self._cells[:n], self._stages[:n], self._cells[:n], self._stages[:n])
        distances[self._apps[:n, None] != self._apps[None, :n]] = np.inf
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argmin(axis=1)
        gap = distances[np.arange(n), nearest]
        target = min(int(self.params.capacity * _KEPT_WHEN_THINNED), self.params.capacity - 1)
        for _ in range(n - target):
            loss = np.where(alive, self._weights[:n] * np.minimum(gap, _LONELY), np.inf)
            leaves = int(loss.argmin())
            alive[leaves] = False
            if np.isfinite(gap[leaves]):
                self._weights[nearest[leaves]] += self._weights[leaves]
            distances[:, leaves] = np.inf
            for i in np.flatnonzero(alive & (nearest == leaves)):
                nearest[i] = distances[i].argmin()
                gap[i] = distances[i, nearest[i]]
        kept = np.flatnonzero(alive)
        m = len(kept)
        for column in (self._cells, self._stages, self._apps, self._weights, self._ids, self._shapes):
            column[:m] = column[kept]
        self._size = m


def _distances(
    cells: NDArray[np.uint8],
    stages: NDArray[np.float32],
    other_cells: NDArray[np.uint8],
    other_stages: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Mean squared log differences of whole tasks, float64[N, M]; stage counts count as an attribute of weight."""
    logs, others = (
        (x[..., :A] * LOG_OF_BYTE).reshape(len(x), P * A).astype(np.float64) for x in (cells, other_cells)
    )
    square = (logs**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None, :] - 2.0 * logs @ others.T
    filled, other_filled = (np.minimum(x, P).astype(np.float64) for x in (stages, other_stages))
    positions = np.maximum(filled[:, None], other_filled[None, :])
    ratio = np.log1p(stages)[:, None] - np.log1p(other_stages)[None, :]
    mean = np.maximum(square, 0.0) / (A * np.maximum(positions, 1.0))
    return np.asarray(mean + _STAGE_WEIGHT * ratio**2)
