"""Packs tokens that attempts hold into the columns of a report."""

from collections.abc import Iterable

import numpy as np

from paceline_executor.contract import TokenColumns
from paceline_executor.llamacpp.attempt import Attempt


def pack_tokens(rows: Iterable[tuple[Attempt, int]]) -> TokenColumns:
    """Columns of every (attempt, first index) row, each to the attempt's newest token; empty rows are left out."""
    keys: list[int] = []
    firsts: list[int] = []
    counts: list[int] = []
    ids: list[int] = []
    lengths: list[int] = []
    texts: list[bytes] = []
    for attempt, first in rows:
        count = len(attempt.output_ids) - first
        if count <= 0:
            continue
        keys.append(attempt.key)
        firsts.append(first)
        counts.append(count)
        ids.extend(attempt.output_ids[first:])
        row_lengths = attempt.text_lengths[first:]
        lengths.extend(row_lengths)
        row_bytes = sum(row_lengths)
        texts.append(bytes(attempt.text[len(attempt.text) - row_bytes :]) if row_bytes else b"")
    return TokenColumns(
        np.array(keys, np.uint64),
        np.array(firsts, np.uint32),
        np.array(counts, np.uint32),
        np.array(ids, np.int32),
        np.array(lengths, np.uint32),
        b"".join(texts),
    )
