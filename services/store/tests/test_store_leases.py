"""One life of a router at a time: tokens grow, and the older life can no longer write."""

import asyncio

import pytest

from paceline_store import Fenced, LeaseHeld, RequestRow, Store, WriteBehind

ROW = RequestRow("r1", "router-0", "m", "t", "a", 1, "{}", 2, 1, b"")


async def test_a_new_life_takes_over_and_the_old_one_is_fenced_off(store: Store, other_store: Store) -> None:
    old = await store.acquire_lease("router-0", "old", 5)
    assert await store.renew_lease(old)
    await store.apply([ROW], lease=old)
    new = await other_store.acquire_lease("router-0", "new", 5)
    assert new.fencing_token > old.fencing_token
    assert not await store.renew_lease(old)
    with pytest.raises(Fenced):
        await store.apply([RequestRow("r2", "router-0", "m", "t", "a", 1, "{}", 2, 1, b"")], lease=old)
    assert not await other_store.has_request("r2")
    assert await other_store.renew_lease(new)
    await store.release_lease(old)
    assert await other_store.renew_lease(new)


async def test_tokens_grow_across_release_and_start_at_the_wall_clock(store: Store) -> None:
    clock = 1_700_000_000_000
    store._now_unix_ms = lambda: clock
    first = await store.acquire_lease("router-0", "a", 5)
    assert first.fencing_token == clock
    assert first.expires_at == clock / 1000 + 5
    await store.release_lease(first)
    second = await store.acquire_lease("router-0", "b", 5)
    assert second.fencing_token == clock + 1
    clock += 10
    assert (await store.acquire_lease("router-0", "c", 5)).fencing_token == clock
    assert (await store.acquire_lease("router-1", "c", 5)).fencing_token == clock


async def test_a_live_lease_of_another_holder_can_be_respected(store: Store) -> None:
    clock = 1_700_000_000_000
    store._now_unix_ms = lambda: clock
    lease = await store.acquire_lease("router-0", "a", 5)
    with pytest.raises(LeaseHeld):
        await store.acquire_lease("router-0", "b", 5, take_over=False)
    assert (
        await store.acquire_lease("router-0", "a", 5, take_over=False)
    ).fencing_token > lease.fencing_token
    clock += 5_001
    assert (await store.acquire_lease("router-0", "b", 5, take_over=False)).holder == "b"


async def test_concurrent_lives_get_different_tokens(store: Store, other_store: Store) -> None:
    await store.acquire_lease("router-0", "first", 5)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task((store, other_store)[i % 2].acquire_lease("router-0", f"{i}", 5))
            for i in range(8)
        ]
    tokens = [task.result().fencing_token for task in tasks]
    assert len(set(tokens)) == 8
    newest = max((task.result() for task in tasks), key=lambda lease: lease.fencing_token)
    assert await store.renew_lease(newest)


async def test_write_behind_of_a_fenced_life_stops(store: Store, other_store: Store) -> None:
    old = await store.acquire_lease("router-0", "old", 5)
    async with WriteBehind(store, lease=old) as writer:
        await writer.commit(ROW)
        await other_store.acquire_lease("router-0", "new", 5)
        with pytest.raises(Fenced):
            await writer.commit(RequestRow("r2", "router-0", "m", "t", "a", 1, "{}", 2, 1, b""))
        assert writer.fenced
        assert not writer.put(ROW)
        with pytest.raises(Fenced):
            await writer.commit(ROW)
    assert writer.stats.dropped_fenced == 2
    assert not await other_store.has_request("r2")
