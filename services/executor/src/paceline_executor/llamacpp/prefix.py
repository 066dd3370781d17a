"""Prompt prefixes whose KV is already there: in a live attempt's slot, or kept in host memory after its end.

With `ALIGNED` reuse only KV made by whole aligned prefill chunks is shared. Such KV depends on the ids alone, so
sharing cannot change an answer. `FAST` shares any common prefix.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_executor.contract import Ids


def common_prefix(left: Ids, right: Ids) -> int:
    """Number of leading ids two sequences share."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    return int(differs.argmax()) if differs.any() else size


@dataclass(frozen=True)
class CachedPrefix:
    """KV of `ids` as state bytes."""

    salt: str
    ids: Ids
    state: NDArray[np.uint8]


class PrefixCache:
    """Least-recently-used KV of ended prompts, bounded in bytes. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[int, CachedPrefix] = OrderedDict()
        self._next_key = 0
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """Tokens whose KV is kept."""
        with self._lock:
            return sum(len(entry.ids) for entry in self._entries.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of KV kept."""
        return self._bytes

    def covers(self, salt: str, ids: Ids) -> bool:
        """True if an entry already begins with `ids`, or if nothing can be kept: then storing is not worth a copy."""
        return self._capacity_bytes <= 0 or self.find(salt, ids)[0] >= len(ids)

    def find(self, salt: str, ids: Ids) -> tuple[int, CachedPrefix | None]:
        """The longest shared prefix with any entry of the same salt: (tokens, entry)."""
        best, best_key = 0, -1
        with self._lock:
            for key, entry in self._entries.items():
                if entry.salt == salt and (shared := common_prefix(entry.ids, ids)) > best:
                    best, best_key = shared, key
            if best_key < 0:
                return 0, None
            self._entries.move_to_end(best_key)
            return best, self._entries[best_key]

    def store(self, entry: CachedPrefix) -> None:
        """Keep an entry; entries it extends go, and so do the least recently used ones over the bound."""
        if len(entry.state) > self._capacity_bytes:
            return
        with self._lock:
            extended = [
                key
                for key, old in self._entries.items()
                if old.salt == entry.salt and common_prefix(old.ids, entry.ids) == len(old.ids)
            ]
            for key in extended:
                self._bytes -= len(self._entries.pop(key).state)
            self._entries[self._next_key] = entry
            self._next_key += 1
            self._bytes += len(entry.state)
            while self._bytes > self._capacity_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= len(oldest.state)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
