"""A PostgreSQL server that restarts, and a SQLite file that cannot grow: rows wait, and nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from paceline_cli.bench.databases import PostgresServer, open_database
from paceline_store import CheckpointRow, RequestRow, Store, StoreUnavailable, WriteBehind

WAIT_S = 60.0
REQUEST = RequestRow("r", "router-0", "m", "t", "a", 3, "{}", 2, 1, b"spec")


def token(index: int, text: bytes = b"") -> CheckpointRow:
    return CheckpointRow("r", index, 1, b"\x01\x00\x00\x00", len(text).to_bytes(4, "little"), text)


class Degradation:
    """What `on_change` said."""

    def __init__(self) -> None:
        self.seen: list[bool] = []
        self._changed = asyncio.Event()

    def __call__(self, degraded: bool) -> None:
        self.seen.append(degraded)
        self._changed.set()

    async def wait(self, degraded: bool) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.seen[-1:] != [degraded]:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    async with open_database("postgres", tmp_path, "router-0") as database:
        assert isinstance(database, PostgresServer)
        yield database


@pytest.mark.postgres
async def test_a_postgres_server_that_restarts_gets_every_row_once(server: PostgresServer) -> None:
    store, changes = await Store.open(server.url), Degradation()
    lease = await store.acquire_lease("router-0", "here", 600.0)
    async with WriteBehind(store, on_change=changes, lease=lease) as writer:
        await writer.commit([REQUEST, token(0)])
        for round in range(2):
            await server.go_down()
            first = 1 + 20 * round
            assert all(writer.put(token(index)) for index in range(first, first + 10))
            await changes.wait(True)
            with pytest.raises(StoreUnavailable):
                await writer.commit(token(999))
            with pytest.raises(StoreUnavailable):
                await store.unfinished("router-0")
            assert all(writer.put(token(index)) for index in range(first + 10, first + 20))
            await server.come_back()
            await changes.wait(False)
        assert await writer.flush(WAIT_S)
        assert await store.renew_lease(lease)
    assert changes.seen == [True, False] * 2
    assert (writer.stats.dropped_full, writer.stats.dropped_rejected) == (0, 0)
    [found] = await store.unfinished("router-0")
    assert found.tokens.count == 41
    assert await server.live_rows() == 1
    await store.close()


async def test_a_full_disk_degrades_and_room_brings_every_row_back(tmp_path: Path) -> None:
    """SQLite's own bound on pages gives the error of a full disk: SQLITE_FULL."""
    store, changes = await Store.open(f"sqlite:///{tmp_path / 'ledger.db'}"), Degradation()
    pages = 0

    def bound(connection: object, _: object, __: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(f"PRAGMA max_page_count={pages or 1_000_000_000}")
        cursor.close()

    event.listen(store._database.engine.sync_engine, "checkout", bound)
    async with WriteBehind(store, on_change=changes) as writer:
        await writer.commit([REQUEST, token(0)])
        pages = 1  # below what it has: no page more
        text = b"x" * 20_000
        assert writer.put(token(1, text))
        await changes.wait(True)
        with pytest.raises(StoreUnavailable):
            await writer.commit(replace(REQUEST, request_id="another"))
        assert all(writer.put(token(index, text)) for index in range(2, 10))
        # What is there can be read: a full disk is no reason not to answer.
        found = await store.get_request("r")
        assert found is not None
        assert found.tokens.count == 1
        pages = 0
        await changes.wait(False)
        assert await writer.flush(WAIT_S)
    assert changes.seen == [True, False]
    assert writer.stats.dropped_rejected == writer.stats.dropped_full == 0
    found = await store.get_request("r")
    assert found is not None
    assert found.tokens.count == 10
    assert not await store.has_request("another")
    await store.close()
