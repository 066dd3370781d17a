"""Many checkpoints to one run of tokens: overlap dropped, stop at the first gap."""

import struct
from collections.abc import Iterable

from paceline_store.rows import CheckpointRow, TokenRun

ITEM_BYTES = 4
"""Width of an id and of a text length."""


def merge(rows: Iterable[CheckpointRow], *, first_index: int = 0) -> TokenRun:
    """The tokens from `first_index` on that the rows cover without a gap.

    Rows may come in any order and may overlap; where they do, the one that begins earlier wins (they hold the same
    tokens: an index is published once). What lies behind a gap is left out: it was written, what it follows was not.
    """
    ids, lengths, text = bytearray(), bytearray(), bytearray()
    have = first_index
    for row in sorted(rows, key=lambda row: (row.first_index, -row.count)):
        if row.first_index > have:
            break
        skip = have - row.first_index
        if skip >= row.count:
            continue
        piece = _tail(row, skip)
        ids += piece.token_ids
        lengths += piece.text_lengths
        text += piece.text
        have = row.end
    return TokenRun(have - first_index, bytes(ids), bytes(lengths), bytes(text))


def joined(rows: Iterable[CheckpointRow]) -> list[CheckpointRow]:
    """The rows of one request with neighbours that touch or overlap made one, in order of their first index."""
    done: list[CheckpointRow] = []
    group: list[CheckpointRow] = []
    end = 0
    for row in sorted(rows, key=lambda row: (row.first_index, -row.count)):
        if group and row.first_index > end:
            done.append(_as_one(group))
            group = []
        end = max(end, row.end) if group else row.end
        group.append(row)
    if group:
        done.append(_as_one(group))
    return done


def checked(row: CheckpointRow) -> CheckpointRow:
    """The row itself; raises ValueError when its columns do not belong together."""
    if row.count < 1 or row.first_index < 0:
        raise ValueError(f"checkpoint of {row.count} tokens from index {row.first_index}")
    if len(row.token_ids) != ITEM_BYTES * row.count or len(row.text_lengths) != ITEM_BYTES * row.count:
        raise ValueError("a checkpoint has one id and one text length per token")
    if sum(_lengths(row)) != len(row.text):
        raise ValueError("the text lengths of a checkpoint must sum up to its text")
    return row


def _as_one(group: list[CheckpointRow]) -> CheckpointRow:
    if len(group) == 1:
        return group[0]
    first = group[0].first_index
    run = merge(group, first_index=first)
    return CheckpointRow(group[0].request_id, first, run.count, run.token_ids, run.text_lengths, run.text)


def _tail(row: CheckpointRow, skip: int) -> TokenRun:
    if skip == 0:
        return TokenRun(row.count, row.token_ids, row.text_lengths, row.text)
    text_from = sum(_lengths(row)[:skip])
    at = ITEM_BYTES * skip
    return TokenRun(row.count - skip, row.token_ids[at:], row.text_lengths[at:], row.text[text_from:])


def _lengths(row: CheckpointRow) -> tuple[int, ...]:
    return struct.unpack(f"<{len(row.text_lengths) // ITEM_BYTES}I", row.text_lengths)
