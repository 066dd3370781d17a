"""The live table: every attempt this scheduler knows, as struct-of-arrays, with the policies' view on top.

A row is taken at submit, stays through the attempt's end, and is free again once released. Columns are plain
attributes, indexed by row; rows that are not in use hold rubbish.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.estimates import LengthEstimates
from paceline_core.batch.state import RunState
from paceline_core.batch.table_view import TableView
from paceline_core.batch.view import BatchView, Capacity, IntArray
from paceline_core.engine_model import EngineModel
from paceline_core.interner import Interner
from paceline_core.slo import OnMiss, Slo, SloClass

_INT: Final = (
    "prompt_tokens", "kv_tokens", "cached_tokens", "generated", "late_tokens", "max_tokens", "token_limit",
    "isolate_until",
)  # fmt: skip
_FLOAT: Final = (
    "arrival_ms", "ttft_ms", "tbt_ms", "e2e_ms", "call_due_ms", "task_due_ms", "task_rest_tokens", "last_token_ms",
    "tenant_lag_tokens",
)  # fmt: skip
_SMALL: Final = ("tenant", "task", "priority", "router")
_BYTE: Final = ("slo_class", "state")
_KEY: Final = ("key",)
_FLAG: Final = ("alive", "started", "at_risk", "drops", "finishes")
_LEAST_GROWTH: Final = 16
"""Rows."""


class Occupant(Protocol):
    """What a row is of. The table sets `row`, and `router_id` when the owner changes."""

    key: int
    row: int
    router_id: str

    @property
    def tenant(self) -> str:
        """For fairness."""
        ...

    @property
    def slo(self) -> Slo:
        """The objective."""
        ...


A = TypeVar("A", bound=Occupant)


class LiveTable(Generic[A]):
    """Rows of attempts. `alive` is True from submit to end; `started` once the attempt has run; `drops` if it is to end
    once its target is out of reach, `finishes` if it must not end for that."""

    prompt_tokens: IntArray
    kv_tokens: IntArray
    cached_tokens: IntArray
    generated: IntArray
    late_tokens: IntArray
    max_tokens: IntArray
    token_limit: IntArray
    isolate_until: IntArray
    arrival_ms: NDArray[np.float64]
    ttft_ms: NDArray[np.float64]
    tbt_ms: NDArray[np.float64]
    e2e_ms: NDArray[np.float64]
    call_due_ms: NDArray[np.float64]
    task_due_ms: NDArray[np.float64]
    task_rest_tokens: NDArray[np.float64]
    last_token_ms: NDArray[np.float64]
    tenant_lag_tokens: NDArray[np.float64]
    tenant: NDArray[np.int32]
    task: NDArray[np.int32]
    priority: NDArray[np.int32]
    router: NDArray[np.int32]
    slo_class: NDArray[np.int8]
    state: NDArray[np.int8]
    key: NDArray[np.uint64]
    alive: NDArray[np.bool_]
    started: NDArray[np.bool_]
    at_risk: NDArray[np.bool_]
    drops: NDArray[np.bool_]
    finishes: NDArray[np.bool_]
    lengths: LengthEstimates

    def __init__(self, rows: int = 16) -> None:
        self._allocate(rows)
        self.lengths = LengthEstimates(rows)
        self._attempts: list[A | None] = [None] * rows
        self._free = list(range(rows - 1, -1, -1))
        self._row_of: dict[int, int] = {}
        self._routers = Interner()
        self._tenants = Interner()
        self._tasks = Interner()
        self._live = 0
        self.version = 0
        """Changes whenever a row is taken, freed, or gets another owner."""

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, key: int) -> bool:
        return key in self._row_of

    def __iter__(self) -> Iterator[A]:
        """All attempts, oldest row first taken; safe against removal while iterating."""
        return iter([a for row in list(self._row_of.values()) if (a := self._attempts[row]) is not None])

    @property
    def rows(self) -> int:
        """Rows there is room for now; grows by an eighth."""
        return len(self._attempts)

    @property
    def live(self) -> int:
        """Attempts that have not ended."""
        return self._live

    def add(self, attempt: A, cdf: NDArray[np.float64], max_tokens: int) -> int:
        """Take a row for `attempt`, with the length CDF [K] and the limit of its request. Numbers not given are 0.

        Raises KeyError when the key is taken.
        """
        if attempt.key in self._row_of:
            raise KeyError(attempt.key)
        if not self._free:
            self._grow()
        row = self._free.pop()
        attempt.row = row
        self._attempts[row] = attempt
        self.key[row] = attempt.key
        self._row_of[attempt.key] = row
        self.version += 1
        for name in (*_INT, *_FLOAT, *_SMALL, *_FLAG):
            getattr(self, name)[row] = 0
        slo = attempt.slo
        self.slo_class[row] = slo.slo_class
        self.ttft_ms[row], self.tbt_ms[row], self.e2e_ms[row] = slo.ttft_ms, slo.tbt_ms, slo.e2e_ms
        self.drops[row] = slo.on_miss is OnMiss.DROP
        self.finishes[row] = slo.on_miss is OnMiss.FINISH
        self.call_due_ms[row] = self.task_due_ms[row] = np.inf
        self.router[row] = self._routers.acquire(attempt.router_id)
        self.tenant[row] = self._tenants.acquire(attempt.tenant)
        is_task = slo.slo_class is SloClass.TASK and slo.task_id
        self.task[row] = self._tasks.acquire(slo.task_id) if is_task else -1
        self.state[row] = RunState.QUEUED
        self.max_tokens[row] = max_tokens
        self.lengths.put(np.array([row]), cdf[None, :], np.array([max_tokens]))
        self.alive[row] = True
        self._live += 1
        return row

    def end(self, attempt: A, state: RunState) -> None:
        """The attempt ended; its row stays until `remove`."""
        if self.alive[attempt.row]:
            self.alive[attempt.row] = False
            self._live -= 1
        self.state[attempt.row] = state
        self.kv_tokens[attempt.row] = 0

    def remove(self, key: int) -> A | None:
        """Free the row of `key`; None if there is none."""
        row = self._row_of.pop(key, None)
        if row is None:
            return None
        attempt = self._attempts[row]
        if self.alive[row]:
            self.alive[row] = False
            self._live -= 1
        self._routers.release(int(self.router[row]))
        self._tenants.release(int(self.tenant[row]))
        if self.task[row] >= 0:
            self._tasks.release(int(self.task[row]))
        self._attempts[row] = None
        self._free.append(row)
        self.version += 1
        return attempt

    def get(self, key: int) -> A | None:
        """The attempt with this key; None when unknown."""
        row = self._row_of.get(key)
        return None if row is None else self._attempts[row]

    def at(self, row: int) -> A:
        """The attempt in a row that is in use."""
        attempt = self._attempts[row]
        if attempt is None:
            raise LookupError(f"row {row} is free")
        return attempt

    def keys_of(self, rows: IntArray) -> list[int]:
        """[R] Keys of rows that are in use."""
        keys: list[int] = self.key[rows].tolist()
        return keys

    def rows_of(self, keys: Sequence[int]) -> IntArray:
        """[len(keys)] Row of each key, -1 for unknown ones."""
        get = self._row_of.get
        return np.fromiter((get(key, -1) for key in keys), dtype=np.int64, count=len(keys))

    def live_rows(self) -> IntArray:
        """[live] Rows of attempts that have not ended."""
        return np.flatnonzero(self.alive)

    def change_router(self, attempt: A, router_id: str) -> None:
        """Give the attempt to another owner."""
        self._routers.release(int(self.router[attempt.row]))
        self.router[attempt.row] = self._routers.acquire(router_id)
        attempt.router_id = router_id
        self.version += 1

    def estimate(self, row: int, cdf: NDArray[np.float64]) -> None:
        """A new length CDF [K] for a row."""
        self.lengths.put(np.array([row]), cdf[None, :], self.max_tokens[row : row + 1])

    def remaining_mean(self, rows: IntArray) -> NDArray[np.float64]:
        """[R] Expected output tokens still to come."""
        return self.lengths.mean_left(rows, self.generated[rows])

    def view(
        self,
        capacity: Capacity,
        model: EngineModel,
        rows: IntArray | None = None,
        *,
        step: int = 0,
        planned_step: int = -1,
    ) -> BatchView:
        """What policies see: the live rows, or the given ones. It holds until the table changes: columns are read when
        they are asked for. `step`, `planned_step`: see `BatchView`."""
        r = self.live_rows() if rows is None else rows
        return TableView(self, r, self.lengths, capacity, model, step, planned_step)

    def _allocate(self, rows: int) -> None:
        kinds = (
            (_INT, np.int64),
            (_FLOAT, np.float64),
            (_SMALL, np.int32),
            (_BYTE, np.int8),
            (_KEY, np.uint64),
            (_FLAG, np.bool_),
        )
        for names, dtype in kinds:
            for name in names:
                setattr(self, name, np.zeros(rows, dtype=dtype))

    def _grow(self) -> None:
        old = {name: getattr(self, name) for name in (*_INT, *_FLOAT, *_SMALL, *_BYTE, *_KEY, *_FLAG)}
        had = self.rows
        rows = had + max(_LEAST_GROWTH, had // 8)
        self._allocate(rows)
        for name, column in old.items():
            getattr(self, name)[:had] = column
        self.lengths.grow(rows)
        self._attempts.extend([None] * (rows - had))
        self._free.extend(range(rows - 1, had - 1, -1))
