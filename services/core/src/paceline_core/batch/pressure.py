"""KV and slot pressure, the same for every policy: what fits of a plan, and whose KV goes so that its head fits."""

from dataclasses import dataclass

import numpy as np

from paceline_core.batch.plan import UNTIL_EVENT
from paceline_core.batch.view import BatchView, IntArray

GROWTH_TOKENS = 32
"""Output tokens ahead for which room is kept, so that the answer holds for some steps."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What can be asked of the engine."""

    order: IntArray
    """[M'] The longest start of the order that can live in the engine together, at least one row."""
    evict: IntArray
    """[E] Resident rows outside `order` whose KV must go, least wanted first."""
    valid_for_steps: int
    """Steps until growth alone changes this answer; at least 1."""


def fit(view: BatchView, order: IntArray, max_batch: int) -> Fit:
    """Cut `order` to what fits, and choose evictions so that its first `max_batch` rows can run.

    Paused KV is dropped from the back: requests not in the list first (youngest first), then the end of the list. KV
    that is in nobody's way stays.
    """
    capacity = view.capacity
    if not len(order):
        return Fit(order, np.empty(0, dtype=np.int64), UNTIL_EVENT)
    need = _need(view, order)
    listed = len(order)
    count = max(1, min(int(np.count_nonzero(np.cumsum(need) <= capacity.kv_tokens)), capacity.max_resident))
    order = order[:count]
    head = order[: max_batch or capacity.max_batch]

    kv = view.kv_tokens
    of_head = kv[head]
    kept = int(need[: len(head)].sum()) + int(kv.sum()) - int(of_head.sum())
    residents = len(head) + int(np.count_nonzero(kv)) - int(np.count_nonzero(of_head))
    if kept > capacity.kv_tokens or residents > capacity.max_resident:
        in_head = np.zeros(len(view), dtype=bool)
        in_head[head] = True
        others = np.flatnonzero((kv > 0) & ~in_head)
        place = np.full(len(view), len(view) + 1, dtype=np.int64)
        place[order] = np.arange(count)
        victims = others[np.lexsort((-view.row_id[others], -view.arrival_ms[others], -place[others]))]
        evict: list[int] = []
        for row in victims.tolist():
            if kept <= capacity.kv_tokens and residents <= capacity.max_resident:
                break
            evict.append(row)
            kept -= int(kv[row])
            residents -= 1
        gone = np.asarray(evict, dtype=np.int64)
        order = order[~np.isin(order, gone)]
        # Room is tight: look again before the growth that was allowed for is used up.
        return Fit(order, gone, GROWTH_TOKENS // 2)
    spare = capacity.kv_tokens - kept
    tight = spare < GROWTH_TOKENS * len(head) * 4 or count < min(listed, capacity.max_resident)
    return Fit(
        order, np.empty(0, dtype=np.int64), GROWTH_TOKENS // 2 if tight else max(1, spare // len(head))
    )


def _need(view: BatchView, rows: IntArray) -> IntArray:
    """[R] KV tokens of `rows`, with room to grow."""
    generated = view.generated[rows]
    context = view.prompt_tokens[rows] + np.maximum(generated - 1, 0)
    growth = np.minimum(GROWTH_TOKENS, np.maximum(view.max_tokens[rows] - generated, 0))
    return np.asarray(np.minimum(context + growth, view.capacity.max_context_tokens))
