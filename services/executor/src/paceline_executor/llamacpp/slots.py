"""Which sequence sits in which KV slot, and how a run set becomes gap-free.

llama.cpp decodes ascending, gap-free slots in one pass and cuts anything else into several: a hole in the middle of
eight sequences costs a quarter of the step, while moving a sequence costs about a millisecond, once. So whoever
decodes is moved together, and whoever sits between is moved out.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Move:
    """KV goes from slot `source` to `target`; what is in `target` (if anything) comes back to `source`."""

    source: int
    target: int


def plan_window(held_tokens: Sequence[int | None], running: Sequence[int]) -> list[Move]:
    """Cheapest moves that put the slots of `running` side by side.

    `held_tokens[s]` is the KV of slot s in tokens, None if it is free. Cost of a window: tokens of runners outside
    it, which must come in, plus tokens of others inside it, which must go out. Ties go to the lowest window.
    """
    count = len(running)
    if count == 0 or max(running) - min(running) + 1 == count:
        return []
    members = set(running)

    def cost(start: int) -> int:
        stop = start + count
        inward = sum((held_tokens[slot] or 0) + 1 for slot in members if not start <= slot < stop)
        outward = sum(
            (held_tokens[slot] or 0) + 1
            for slot in range(start, stop)
            if slot not in members and held_tokens[slot] is not None
        )
        return inward + outward

    start = min(range(len(held_tokens) - count + 1), key=lambda candidate: (cost(candidate), candidate))
    window = range(start, start + count)
    outsiders = sorted(slot for slot in members if slot not in window)
    holes = [slot for slot in window if slot not in members]
    return [Move(source, target) for source, target in zip(outsiders, holes, strict=True)]


def choose_free_slot(free: Sequence[int], running: Sequence[int], *, joins_now: bool) -> int:
    """A free slot for a newcomer that needs no move later, if there is one.

    One that will decode in this very step fills a hole; one that prefills for longer goes behind the run set, where
    it does not stand between others.
    """
    if not running:
        return min(free)
    low, high = min(running), max(running)

    def rank(slot: int) -> tuple[int, int]:
        inside = low < slot < high
        if inside:
            return (0 if joins_now else 2, slot)
        return (1, slot - high if slot > high else 2 * (low - slot))

    return min(free, key=rank)
