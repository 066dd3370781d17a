"""KV memory in blocks: full blocks are shared and kept for reuse, the least recently used go first."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

DEFAULT_PRIORITY = 35


@dataclass(slots=True)
class Holding:
    """Blocks of one request."""

    keys: list[int] = field(default_factory=list)
    """Full blocks, known to the reuse tree."""
    open_blocks: int = 0
    """Blocks that are not full, or not yet in the tree."""
    priority: int = DEFAULT_PRIORITY

    @property
    def blocks(self) -> int:
        """All of them."""
        return len(self.keys) + self.open_blocks


class BlockPool:
    """`total` blocks of `tokens_per_block` tokens. A block enters the reuse tree as soon as it is full."""

    def __init__(
        self, total: int, tokens_per_block: int, *, reuse: bool, on_event: Callable[[str, int], None]
    ) -> None:
        self.total = total
        self.tokens_per_block = tokens_per_block
        self._reuse = reuse
        self._on_event = on_event
        self._references: dict[int, int] = {}
        self._kept: dict[int, OrderedDict[int, None]] = {}
        """Blocks that nobody uses, by retention priority, oldest first."""
        self._priority_of: dict[int, int] = {}
        self._open = 0

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return len(self._references) + self._open

    @property
    def kept(self) -> int:
        """Blocks held for reuse alone."""
        return len(self._priority_of)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens need."""
        return -(-tokens // self.tokens_per_block)

    def take_prefix(self, holding: Holding, ids: Sequence[int], salt: int) -> int:
        """Give the request the blocks that its prompt shares with the tree: tokens, always less than all of them."""
        if not self._reuse:
            return 0
        size = self.tokens_per_block
        key = salt
        for start in range(0, (len(ids) - 1) // size * size, size):
            key = self._key(key, ids[start : start + size])
            if key not in self._references and key not in self._priority_of:
                break
            self._hold(key)
            holding.keys.append(key)
        return len(holding.keys) * size

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Make room for `tokens` in all; False when no block is to be had."""
        needed = self.blocks_for(tokens) - holding.blocks
        while needed > 0:
            if self.used + self.kept >= self.total and not self._evict_one():
                return False
            self._open += 1
            holding.open_blocks += 1
            needed -= 1
        return True

    def commit(self, holding: Holding, ids: Sequence[int], salt: int) -> None:
        """Enter what has become full; `ids` are all ids whose KV is there."""
        size = self.tokens_per_block
        while len(holding.keys) < len(ids) // size:
            start = len(holding.keys) * size
            key = self._key(holding.keys[-1] if holding.keys else salt, ids[start : start + size])
            self._open -= 1
            holding.open_blocks -= 1
            if key not in self._references and key not in self._priority_of:
                self._on_event("stored", key)
            self._hold(key)
            holding.keys.append(key)

    def release(self, holding: Holding) -> None:
        """The request is over: full blocks stay for reuse, the last ones of a request are the first to go."""
        self._open -= holding.open_blocks
        holding.open_blocks = 0
        for key in reversed(holding.keys):
            self._references[key] -= 1
            if self._references[key] == 0:
                del self._references[key]
                if self._reuse:
                    self._kept.setdefault(holding.priority, OrderedDict())[key] = None
                    self._priority_of[key] = holding.priority
        holding.keys.clear()

    def _hold(self, key: int) -> None:
        priority = self._priority_of.pop(key, None)
        if priority is not None:
            del self._kept[priority][key]
        self._references[key] = self._references.get(key, 0) + 1

    def _evict_one(self) -> bool:
        for priority in sorted(self._kept):
            if self._kept[priority]:
                key, _ = self._kept[priority].popitem(last=False)
                del self._priority_of[key]
                self._on_event("removed", key)
                return True
        return False

    def _key(self, parent: int, ids: Sequence[int]) -> int:
        return hash((parent, *ids))
