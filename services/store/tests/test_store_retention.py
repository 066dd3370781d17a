"""Old work goes, new work stays, and an outage does not end the cleaning."""

import asyncio
import time
from dataclasses import replace

import pytest

from paceline_store import RequestRow, Store, StoreUnavailable
from paceline_store.retention import keep_for

ENDED = RequestRow("r", "router-0", "m", "t", "a", 8, "{}", 2, 1, b"", finished=b"f", finished_unix_ms=1)


async def test_what_ended_long_ago_is_deleted_in_pieces(store: Store) -> None:
    old = [replace(ENDED, request_id=f"old-{i}") for i in range(450)]
    fresh = replace(ENDED, request_id="fresh", finished_unix_ms=round(1000 * time.time()))
    await store.apply([*old, fresh])
    cleaning = asyncio.create_task(keep_for(store, 3600, interval_s=0.01))
    async with asyncio.timeout(60):
        while await store.has_request("old-449") or await store.has_request("old-0"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    cleaning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    assert [one.request.request_id for one in await store.list_requests(10)] == ["fresh"]


async def test_keeping_for_ever_deletes_nothing(store: Store) -> None:
    await store.apply([ENDED])
    await keep_for(store, 0)
    assert await store.has_request("r")


async def test_an_outage_is_outlasted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.apply([ENDED])
    prune, calls = store.prune, 0

    async def failing_first(ended_before_unix_ms: int, *, limit: int = 1_000) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailable("scripted")
        return await prune(ended_before_unix_ms, limit=limit)

    monkeypatch.setattr(store, "prune", failing_first)
    cleaning = asyncio.create_task(keep_for(store, 1, interval_s=0.01))
    async with asyncio.timeout(60):
        while await store.has_request("r"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    cleaning.cancel()
    assert calls >= 2
