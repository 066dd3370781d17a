"""The first few of many: what every policy's list is made of, in time linear in the number of live requests."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.view import BatchView, IntArray

LEAST_LISTED: Final = 256
"""A list has room for so many rows at least, and for two batches: an engine fills free slots from it at once."""


def list_length(view: BatchView) -> int:
    """Most rows that a policy puts into its list."""
    return max(LEAST_LISTED, 2 * view.capacity.max_batch)


def leading(rows: IntArray, keys: Sequence[NDArray[Any]], count: int) -> IntArray:
    """[min(count, R)] Those of `rows` [R] that come first by `keys` (columns [N], weightiest first), in their order.

    The last key must tell all rows apart, then the answer does not depend on the order of `rows`. A key is read for
    those rows only that the keys before it leave equal, and only what is in the answer is sorted.
    """
    taken, pool, need = [], rows, min(max(count, 0), len(rows))
    for key in keys:
        if len(pool) == need or not need:
            break
        values = key[pool]
        last = np.partition(values, need - 1)[need - 1]
        before = pool[values < last]
        taken.append(before)
        need -= len(before)
        pool = pool[values == last]
    picked = np.concatenate([*taken, pool[:need]]) if taken else pool[:need]
    return np.asarray(picked[np.lexsort([key[picked] for key in reversed(keys)])])


def first_by(view: BatchView, rows: IntArray, key: NDArray[Any], count: int) -> IntArray:
    """[min(count, R)] Those of `rows` with the highest priority of their client, then the smallest `key` [N], then the
    earliest arrival."""
    keys = [key, view.arrival_ms, view.row_id]
    if view.priority.any():
        keys.insert(0, -view.priority.astype(np.int64))
    return leading(rows, keys, count)
