"""Writes off the token path: a bounded buffer, and one task that commits it in groups.

One first-in first-out buffer keeps the order of each request's rows. While the store is down the buffer fills,
`degraded` says so, and the task tries again with backoff. Rows that would overflow the buffer are refused and counted,
never the ones that are already in it. A caller of `commit` is told at once when its rows could not be made durable.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from paceline_runtime.errors import PacelineError
from paceline_runtime.telemetry.metrics import Instruments
from paceline_store.buffer import RowBuffer
from paceline_store.checkpoints import checked
from paceline_store.errors import Fenced, StoreUnavailable
from paceline_store.rows import CheckpointRow, Lease, Row
from paceline_store.telemetry import WriteMetrics

_log = logging.getLogger(__name__)

DEFAULT_BUFFER_BYTES = 64 * 1024 * 1024
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 2.0


class RowStore(Protocol):
    """The part of Store that is written to."""

    async def apply(self, rows: Sequence[Row], *, lease: Lease | None = None) -> None: ...

    async def ping(self) -> None: ...


@dataclass(slots=True)
class WriteBehindStats:
    """Counters since the start."""

    rows_put: int = 0
    rows_written: int = 0
    commits: int = 0
    failed_commits: int = 0
    dropped_full: int = 0
    """Refused because the buffer was full or closed."""
    dropped_rejected: int = 0
    """Refused by the database itself."""
    dropped_fenced: int = 0
    """Left behind by a life that was fenced off, or put after that."""
    dropped_at_close: int = 0
    """Not written within the time that close had."""


class WriteBehind:
    """Buffered, ordered, bounded writes. Use as `async with WriteBehind(store) as writer`.

    `put` and `commit` are for the event loop that entered it; `on_change(degraded)` is called there too.
    With a `lease`, every group commit checks that no newer life of the router has taken over.
    """

    def __init__(
        self,
        store: RowStore,
        *,
        max_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        flush_interval_ms: float = 20,
        max_batch: int = 256,
        close_timeout_s: float = 5.0,
        lease: Lease | None = None,
        on_change: Callable[[bool], None] | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._store = store
        self._flush_interval_s = flush_interval_ms / 1000
        self._max_batch = max_batch
        self._close_timeout_s = close_timeout_s
        self._lease = lease
        self.on_change = on_change
        self.stats = WriteBehindStats()
        self._buffer = RowBuffer(max_buffer_bytes)
        self._metrics = WriteMetrics(instruments, lambda: len(self._buffer))
        self._impatient = 0
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._degraded = False
        self._fenced = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="store-write-behind")
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def degraded(self) -> bool:
        """True while the store does not take writes."""
        return self._degraded

    @property
    def fenced(self) -> bool:
        """True once a newer life of this router has taken over: nothing is written any more."""
        return self._fenced

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait or are being written."""
        return self._buffer.size_bytes

    @property
    def buffered_rows(self) -> int:
        """Rows that wait or are being written."""
        return len(self._buffer)

    def put(self, row: Row) -> bool:
        """Queue a row; never blocks. False, and counted, when there is no room for it (or after the end).

        Raises ValueError on a checkpoint whose columns do not belong together.
        """
        return self._add([row], None)

    async def commit(self, rows: Row | Iterable[Row]) -> None:
        """Queue rows and wait until they, and all rows before them, are durable.

        Raises StoreUnavailable when their group commit fails, the buffer is full, or the store is known to be down:
        then the rows are not kept for later (though they may have been written). Raises StoreRejected when the database
        refuses one of them, Fenced when a newer life has taken over, ValueError as `put` does.
        """
        batch = [rows] if isinstance(rows, Row) else list(rows)
        if not batch:
            return
        if self._fenced:
            raise Fenced("a newer life of this router has taken over")
        if self._degraded:
            raise StoreUnavailable("the store is down: nothing can be made durable now")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._add(batch, future):
            raise StoreUnavailable("the write buffer is full or closed: nothing can be made durable now")
        with self._impatience():
            await future

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the buffer is empty; False when it was not in time."""
        with self._impatience(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._buffer.drained.wait()
        return len(self._buffer) == 0

    async def close(self) -> None:
        """Write what is buffered, within the close time-out; the rest is dropped and counted."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._closing = True
        await self.flush(self._close_timeout_s)
        task.cancel()
        await asyncio.wait([task])
        dropped = self._buffer.drop_all(StoreUnavailable("closed before the rows could be written"))
        if dropped:
            self.stats.dropped_at_close += dropped
            self._metrics.dropped(dropped, "closed")
            _log.error("writes dropped at close", extra={"rows": dropped})

    def _add(self, rows: Sequence[Row], future: asyncio.Future[None] | None) -> bool:
        for row in rows:
            if isinstance(row, CheckpointRow):
                checked(row)
        if self._fenced:
            self.stats.dropped_fenced += len(rows)
            self._metrics.dropped(len(rows), "fenced")
            return False
        if self._closing or not self._buffer.add(rows, future):
            self.stats.dropped_full += len(rows)
            self._metrics.dropped(len(rows), "full")
            return False
        self.stats.rows_put += len(rows)
        self._wake.set()
        if self._buffer.waiting >= self._max_batch:
            self._hurry.set()
        return True

    @contextlib.contextmanager
    def _impatience(self) -> Iterator[None]:
        """While somebody waits, groups are written at once."""
        self._impatient += 1
        self._hurry.set()
        try:
            yield
        finally:
            self._impatient -= 1

    async def _run(self) -> None:
        """Wait for rows, let a group come together, write it; while the store is down, probe it with backoff."""
        backoff_s = BACKOFF_MIN_S
        while True:
            if self._degraded:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            else:
                backoff_s = BACKOFF_MIN_S
                self._wake.clear()
                if not self._buffer.waiting:
                    await self._wake.wait()
                await self._gather_group()
            await self._write_group()

    async def _gather_group(self) -> None:
        if self._impatient or self._buffer.waiting >= self._max_batch:
            return
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._flush_interval_s):
                await self._hurry.wait()

    async def _write_group(self) -> None:
        """One group commit, or a probe when there is nothing to write."""
        rows = self._buffer.take_group(self._max_batch)
        began = time.perf_counter()
        try:
            if rows:
                await self._store.apply(rows, lease=self._lease)
                self._metrics.written(rows, time.perf_counter() - began)
                self.stats.commits += 1
                self.stats.rows_written += len(rows)
                self._buffer.group_written()
            else:
                await self._store.ping()
        except StoreUnavailable as error:
            self._store_down(error)
        except Fenced as error:
            self._stop_writing(error)
        except PacelineError as error:
            _log.warning(
                "a group commit was refused; writing its rows one by one", extra={"reason": error.message}
            )
            await self._write_one_by_one(rows)
        else:
            self._set_degraded(False)

    async def _write_one_by_one(self, rows: Sequence[Row]) -> None:
        """The group holds a row that the database refuses: drop that one, keep the others."""
        for row in rows:
            try:
                began = time.perf_counter()
                await self._store.apply([row], lease=self._lease)
                self._metrics.written([row], time.perf_counter() - began)
                self.stats.rows_written += 1
                self._buffer.row_written()
            except StoreUnavailable as error:
                self._store_down(error)
                return
            except Fenced as error:
                self._stop_writing(error)
                return
            except PacelineError as error:
                self.stats.dropped_rejected += 1
                self._metrics.dropped(1, "rejected")
                # The row's contents stay out of the log: they are prompts.
                kind, key = type(row).__name__, str(row.key)
                _log.error(
                    "the store refuses a row",
                    extra={"row_kind": kind, "row_key": key, "reason": error.message},
                )
                self._buffer.row_refused(error)
        self.stats.commits += 1
        self._set_degraded(False)

    def _store_down(self, error: StoreUnavailable) -> None:
        self.stats.failed_commits += 1
        self._buffer.group_failed(error)
        self._set_degraded(True, error.message)

    def _stop_writing(self, error: Fenced) -> None:
        self._fenced = True
        dropped = self._buffer.drop_all(error)
        self.stats.dropped_fenced += dropped
        self._metrics.dropped(dropped, "fenced")
        _log.error("fenced off: a newer life of this router writes now", extra={"rows_dropped": dropped})

    def _set_degraded(self, degraded: bool, reason: str = "") -> None:
        if degraded == self._degraded:
            return
        self._degraded = degraded
        rows = len(self._buffer)
        if degraded:
            _log.error("store down: durability is degraded", extra={"reason": reason, "rows_buffered": rows})
        else:
            _log.info("store back: writing what was buffered", extra={"rows_buffered": rows})
        if self.on_change is not None:
            self.on_change(degraded)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        # A defect of ours: nothing will be written any more, and that must show.
        _log.critical("write-behind failed", exc_info=task.exception())
        self._closing = True
        self._buffer.drop_all(StoreUnavailable("the write-behind has failed"))
        self._set_degraded(True, repr(task.exception()))
