"""What would go, how large the ledger is, and where to cut so that it fits."""

from dataclasses import replace

import pytest

from paceline_store import CheckpointRow, EngineRow, RequestRow, Store, TaskRow

SPEC = b"s" * 1000
ENDED = RequestRow("r", "router-0", "m", "t", "a", 8, "{}", 2, 1, SPEC, finished=b"f", finished_unix_ms=1)


def request(number: int, tokens: int = 0) -> list[RequestRow | CheckpointRow]:
    """A request that ended at `number`, with a checkpoint of tokens."""
    name = f"r-{number}"
    rows: list[RequestRow | CheckpointRow] = [replace(ENDED, request_id=name, finished_unix_ms=number)]
    if tokens:
        rows.append(CheckpointRow(name, 0, tokens, bytes(4 * tokens), bytes(4 * tokens), b""))
    return rows


@pytest.fixture
async def ledger(store: Store) -> Store:
    """Ten requests that ended at 1..10, the fifth with 1000 tokens; one that lives; a task; a lost engine."""
    rows = [row for number in range(1, 11) for row in request(number, 1000 if number == 5 else 0)]
    live = replace(ENDED, request_id="live", finished=None, finished_unix_ms=None)
    task = TaskRow("task", "a", "t", 1000.0, 1, ended_unix_ms=3)
    engine = EngineRow("e", 1, "at", b"", 1, 4)
    await store.apply([*rows, live, task, engine, replace(engine, incarnation=2, lost_unix_ms=None)])
    return store


async def test_the_size_of_what_ended_is_counted(ledger: Store) -> None:
    everything = await ledger.ended_size()
    assert (everything.requests, everything.tasks, everything.engines) == (10, 1, 1)
    assert 10 * len(SPEC) + 8000 < everything.bytes < 10 * (len(SPEC) + 300) + 9000
    early = await ledger.ended_size(4)
    assert (early.requests, early.tasks, early.engines) == (3, 1, 0)
    assert early.bytes < 3 * (len(SPEC) + 300)
    assert (await ledger.ended_size(1)).rows == 0


async def test_pruning_deletes_what_was_counted(ledger: Store) -> None:
    gone = await ledger.ended_size(6)
    assert await ledger.prune(6) == gone.rows
    assert (await ledger.ended_size(6)).rows == 0
    assert (await ledger.ended_size()).requests == 5
    assert await ledger.has_request("live")


async def test_a_cut_keeps_as_much_as_fits(ledger: Store) -> None:
    everything = (await ledger.ended_size()).bytes
    # The one that lives is no larger than one of the ten.
    assert await ledger.ended_before_for(everything + everything // 10) == 0
    # Room for the five newest ones; the fifth is too large beside them.
    small = (await ledger.ended_size(2)).bytes
    cut = await ledger.ended_before_for(6 * small + 10)
    assert cut == 6
    await ledger.prune(cut)
    assert (await ledger.ended_size()).requests == 5
    assert await ledger.ended_before_for(6 * small + 10) == 0


async def test_unfinished_requests_stay_however_small_the_bound(ledger: Store) -> None:
    cut = await ledger.ended_before_for(0)
    assert cut == 11
    await ledger.prune(cut)
    assert (await ledger.ended_size()).rows == 0
    assert await ledger.has_request("live")


async def test_what_ended_at_the_same_moment_goes_together(store: Store) -> None:
    await store.apply([replace(ENDED, request_id=f"r-{number}", finished_unix_ms=7) for number in range(4)])
    whole = (await store.ended_size()).bytes
    assert await store.ended_before_for(whole) == 0
    assert await store.ended_before_for(whole - 1) == 8
