"""Which row of an array belongs to which key: bounded, and the key used longest ago leaves first."""

from collections import OrderedDict
from collections.abc import Iterator

Key = tuple[str, str]


class KeyRows:
    """Rows 0, 1, ... for up to `capacity` keys. The owner keeps the arrays, and empties a row it is told to reuse."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a table needs room for one key")
        self._capacity = capacity
        self._rows: OrderedDict[Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Key]:
        """Keys, the one used longest ago first."""
        return iter(self._rows)

    @property
    def capacity(self) -> int:
        """Keys kept at most."""
        return self._capacity

    def get(self, key: Key) -> int:
        """The row of a key, -1 when it has none."""
        return self._rows.get(key, -1)

    def rows(self) -> list[int]:
        """Rows in the order of iteration."""
        return list(self._rows.values())

    def take(self, key: Key) -> tuple[int, bool]:
        """The row of a key, which is now the most recent one, and whether it is newly its own (to be emptied)."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row, False
        if len(self._rows) == self._capacity:
            _, row = self._rows.popitem(last=False)
        else:
            row = len(self._rows)
        self._rows[key] = row
        return row, True
