"""The bounded first-in first-out buffer of rows that wait to be written."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from paceline_runtime.errors import PacelineError
from paceline_store.rows import Row, size_bytes


@dataclass(slots=True)
class SyncCommit:
    """Somebody who waits for rows to become durable."""

    future: asyncio.Future[None]
    rows_left: int

    def row_written(self) -> None:
        self.rows_left -= 1
        if self.rows_left == 0 and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: PacelineError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Entry:
    """A buffered row."""

    row: Row
    size_bytes: int
    commit: SyncCommit | None


class RowBuffer:
    """Waiting rows, and the group that is being written: both count against the bound until they are done."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[Entry] = deque()
        self._group: deque[Entry] = deque()
        self._bytes = 0
        self.drained = asyncio.Event()
        self.drained.set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._group)

    @property
    def size_bytes(self) -> int:
        """Bytes held, about."""
        return self._bytes

    @property
    def waiting(self) -> int:
        """Rows that are not being written yet."""
        return len(self._waiting)

    @property
    def group(self) -> list[Row]:
        """The rows that are being written."""
        return [entry.row for entry in self._group]

    def add(self, rows: Sequence[Row], future: asyncio.Future[None] | None) -> bool:
        """Queue all rows, or none when they do not fit."""
        sizes = [size_bytes(row) for row in rows]
        if self._bytes + sum(sizes) > self._max_bytes:
            return False
        commit = None if future is None else SyncCommit(future, len(rows))
        self._waiting.extend(Entry(row, size, commit) for row, size in zip(rows, sizes, strict=True))
        self._bytes += sum(sizes)
        self.drained.clear()
        return True

    def take_group(self, max_rows: int) -> list[Row]:
        """Begin to write the oldest rows."""
        while self._waiting and len(self._group) < max_rows:
            self._group.append(self._waiting.popleft())
        return self.group

    def group_written(self) -> None:
        """The whole group is durable."""
        while self._group:
            self.row_written()

    def row_written(self) -> None:
        """The oldest row of the group is durable."""
        entry = self._pop()
        if entry.commit is not None:
            entry.commit.row_written()

    def row_refused(self, error: PacelineError) -> None:
        """The oldest row of the group will never be written."""
        entry = self._pop()
        if entry.commit is not None:
            entry.commit.fail(error)

    def group_failed(self, error: PacelineError) -> None:
        """The group could not be written now: its rows go back in front; rows that somebody waits for fail and go."""
        everything = [*self._group, *self._waiting]
        self._group.clear()
        self._waiting = deque(entry for entry in everything if entry.commit is None)
        for entry in everything:
            if entry.commit is not None:
                self._bytes -= entry.size_bytes
                entry.commit.fail(error)
        self._check_drained()

    def drop_all(self, error: PacelineError) -> int:
        """Let go of every row; returns how many there were."""
        everything = [*self._group, *self._waiting]
        self._group.clear()
        self._waiting.clear()
        self._bytes = 0
        for entry in everything:
            if entry.commit is not None:
                entry.commit.fail(error)
        self._check_drained()
        return len(everything)

    def _pop(self) -> Entry:
        entry = self._group.popleft()
        self._bytes -= entry.size_bytes
        self._check_drained()
        return entry

    def _check_drained(self) -> None:
        if not self._waiting and not self._group:
            self.drained.set()
