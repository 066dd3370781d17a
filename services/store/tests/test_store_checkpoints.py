"""Merging checkpoints gives back what was published, whatever way it was cut, repeated and shuffled."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_store.checkpoints import checked, joined, merge
from paceline_store.folding import fold
from paceline_store.rows import CheckpointRow, RequestChange, RequestRow, TokenRun

PIECES = st.lists(st.text(max_size=3), min_size=1, max_size=30)


def cut(pieces: list[str], first: int, end: int, request_id: str = "r") -> CheckpointRow:
    encoded = [piece.encode() for piece in pieces[first:end]]
    ids = struct.pack(f"<{end - first}i", *range(first, end))
    lengths = struct.pack(f"<{end - first}I", *map(len, encoded))
    return checked(CheckpointRow(request_id, first, end - first, ids, lengths, b"".join(encoded)))


def whole(pieces: list[str], first: int, end: int) -> TokenRun:
    if end <= first:
        return TokenRun()
    row = cut(pieces, first, end)
    return TokenRun(row.count, row.token_ids, row.text_lengths, row.text)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, int]]]:
    pieces = draw(PIECES)
    spans = st.tuples(st.integers(0, len(pieces) - 1), st.integers(1, len(pieces))).filter(
        lambda s: s[0] < s[1]
    )
    return pieces, draw(st.lists(spans, max_size=12))


def reach(spans: list[tuple[int, int]]) -> int:
    """First index that no span covers: the definition, by brute force."""
    covered = {i for first, end in spans for i in range(first, end)}
    return next(i for i in range(len(covered) + 1) if i not in covered)


@given(cuts())
def test_merge_is_the_run_up_to_the_first_gap(case: tuple[list[str], list[tuple[int, int]]]) -> None:
    pieces, spans = case
    assert merge([cut(pieces, *span) for span in spans]) == whole(pieces, 0, reach(spans))


@given(cuts())
def test_joining_changes_nothing_but_the_number_of_rows(
    case: tuple[list[str], list[tuple[int, int]]],
) -> None:
    pieces, spans = case
    rows = [cut(pieces, *span) for span in spans]
    few = joined(rows)
    covered = {i for first, end in spans for i in range(first, end)}
    assert all(a.end < b.first_index for a, b in itertools.pairwise(few))
    assert {i for row in few for i in range(row.first_index, row.end)} == covered
    assert all(row == cut(pieces, row.first_index, row.end) for row in few)
    assert merge(few) == merge(rows)


@given(PIECES, st.integers(0, 29))
def test_merge_can_begin_in_the_middle(pieces: list[str], first: int) -> None:
    first = min(first, len(pieces) - 1)
    assert merge([cut(pieces, 0, len(pieces))], first_index=first) == whole(pieces, first, len(pieces))


@pytest.mark.parametrize(
    "row",
    [
        CheckpointRow("r", 0, 0, b"", b"", b""),
        CheckpointRow("r", -1, 1, b"\0" * 4, b"\0" * 4, b""),
        CheckpointRow("r", 0, 1, b"\0" * 3, b"\0" * 4, b""),
        CheckpointRow("r", 0, 1, b"\0" * 4, b"\0" * 8, b""),
        CheckpointRow("r", 0, 1, b"\0" * 4, b"\1\0\0\0", b"xy"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(row: CheckpointRow) -> None:
    with pytest.raises(ValueError):
        checked(row)


def test_folding_keeps_the_last_state_and_joins_checkpoints() -> None:
    pieces = ["a", "b", "c"]
    request = RequestRow("r", "router", "m", "t", "a", 1, "{}", 2, 1, b"spec")
    folded = fold(
        [
            request,
            cut(pieces, 0, 1),
            RequestChange("r", 2, prompt_ids=b"1234", prompt_tokens=1),
            cut(pieces, 1, 3),
            RequestChange("r", 8, finished=b"end", finished_unix_ms=9),
            RequestChange("unknown", 4),
            RequestChange("unknown", 5, prompt_tokens=3),
        ]
    )
    assert folded.requests == [
        RequestRow("r", "router", "m", "t", "a", 8, "{}", 2, 1, b"spec", b"1234", 1, 0, "", b"end", 9)
    ]
    assert folded.changes == [RequestChange("unknown", 5, prompt_tokens=3)]
    assert folded.checkpoints == [cut(pieces, 0, 3)]
    assert folded.finished_ids() == ["r"]
