"""Logs of child processes, bounded on disk."""

import os
from pathlib import Path


class RotatingLog:
    """Appends bytes to `path`; at `max_bytes` it becomes `path.1`, and so on up to `path.<keep>`.

    The parent writes what it reads from the child's pipe, so that a chatty child can never fill the disk.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._file = path.open("ab")
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append, rotating first when it would grow past the bound."""
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        self._file.write(data)
        self._file.flush()
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                os.replace(older, self._numbered(number + 1))
        os.replace(self.path, self._numbered(1))
        self._file = self.path.open("ab")
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def tail(path: Path, lines: int, *, max_bytes: int = 64 << 10) -> list[str]:
    """Last lines of a log file; empty when there is none."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - max_bytes))
        return file.read().decode("utf-8", "replace").splitlines()[-lines:]
