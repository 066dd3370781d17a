"""Group commit: order, bounds, outages, rows that the database refuses, and what survives a kill."""

import asyncio
import os
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_store import (
    AttemptRow,
    CheckpointRow,
    Lease,
    RequestChange,
    RequestRow,
    Row,
    Store,
    StoreRejected,
    StoreUnavailable,
    WriteBehind,
)
from paceline_store.database import Database

REQUEST = RequestRow("r1", "router-0", "model", "tenant", "chat", 1, "{}", 2, 1_000, b"spec")
REFUSED = AttemptRow("r1", 1, 2**64, "e", 1, "does not fit", 0, 0, 1)
WAIT_S = 200


def token(request_id: str, index: int, text: bytes = b"x") -> CheckpointRow:
    return CheckpointRow(request_id, index, 1, struct.pack("<i", index), struct.pack("<I", len(text)), text)


class Backend(Protocol):
    """See conftest."""

    url: str

    async def go_down(self) -> None: ...

    async def come_back(self) -> None: ...


class Degradation:
    """Records what on_change says, and lets a test wait for it."""

    def __init__(self) -> None:
        self.seen: list[bool] = []
        self._events = {True: asyncio.Event(), False: asyncio.Event()}

    def __call__(self, degraded: bool) -> None:
        self.seen.append(degraded)
        self._events[degraded].set()

    async def wait(self, degraded: bool) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._events[degraded].wait()


async def test_rows_are_committed_in_groups_and_in_order(store: Store, other_store: Store) -> None:
    async with WriteBehind(store, flush_interval_ms=10_000) as writer:
        assert writer.put(REQUEST)
        for index in range(100):
            assert writer.put(token("r1", index))
            assert writer.put(RequestChange("r1", 1 + index % 7))
        await writer.commit(RequestChange("r1", 4))
        assert writer.stats.commits == 1
    found = await other_store.get_request("r1")
    assert found is not None
    assert found.request.state == 4
    assert found.tokens.count == 100
    assert writer.stats.rows_written == 202
    assert writer.buffered_bytes == 0


async def test_sync_commits_that_come_together_share_a_group(store: Store, other_store: Store) -> None:
    async with WriteBehind(store) as writer:
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            for i in range(50):
                group.create_task(writer.commit([replace(REQUEST, request_id=f"r{i}"), token(f"r{i}", 0)]))
        assert len(await other_store.list_requests(100)) == 50
        assert writer.stats.commits <= 3


async def test_a_sync_commit_wider_than_a_group_resolves_with_its_last_row(
    store: Store, other_store: Store
) -> None:
    async with WriteBehind(store, max_batch=4) as writer, asyncio.timeout(WAIT_S):
        await writer.commit([REQUEST, *(token("r1", i) for i in range(30))])
        found = await other_store.get_request("r1")
    assert found is not None
    assert found.tokens.count == 30


async def test_an_outage_degrades_keeps_async_rows_and_fails_sync_ones(
    store: Store, other_store: Store, backend: Backend
) -> None:
    changes = Degradation()
    async with WriteBehind(store, on_change=changes) as writer:
        await writer.commit(REQUEST)
        await backend.go_down()
        writer.put(token("r1", 0))
        await changes.wait(True)
        assert writer.degraded
        with pytest.raises(StoreUnavailable):
            await writer.commit(token("r1", 9))
        for index in range(1, 50):
            assert writer.put(token("r1", index))
        assert writer.buffered_rows >= 50
        await backend.come_back()
        await changes.wait(False)
        assert await writer.flush(WAIT_S)
        await writer.commit(RequestChange("r1", 4))
    assert changes.seen == [True, False]
    found = await other_store.get_request("r1")
    assert found is not None
    assert (found.tokens.count, found.request.state) == (50, 4)
    assert writer.stats.failed_commits >= 1
    assert writer.stats.dropped_full == 0


async def test_a_sync_commit_under_way_fails_when_the_store_goes_down(store: Store, backend: Backend) -> None:
    async with WriteBehind(store) as writer:
        await writer.commit(REQUEST)
        await backend.go_down()
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(WAIT_S):
                await writer.commit(token("r1", 0))
        assert writer.degraded
        assert writer.buffered_rows == 0
        await backend.come_back()


async def test_the_buffer_is_bounded_and_refusals_are_counted(store: Store, backend: Backend) -> None:
    changes = Degradation()
    async with WriteBehind(store, on_change=changes, max_buffer_bytes=10_000) as writer:
        await backend.go_down()
        assert writer.put(REQUEST)
        await changes.wait(True)
        taken = sum(writer.put(token("r1", index, b"t" * 100)) for index in range(100))
        assert 0 < taken < 100
        assert writer.buffered_bytes <= 10_000
        assert writer.stats.dropped_full == 100 - taken
        await backend.come_back()
        await changes.wait(False)
        assert await writer.flush(WAIT_S)
        assert writer.put(token("r1", 99))
    found = await store.get_request("r1")
    assert found is not None
    assert found.tokens.count == taken


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(
    store: Store, other_store: Store
) -> None:
    async with WriteBehind(store) as writer, asyncio.timeout(WAIT_S):
        assert writer.put(REQUEST)
        assert writer.put(REFUSED)
        await writer.commit(token("r1", 0))
        with pytest.raises(StoreRejected):
            await writer.commit([token("r1", 1), REFUSED])
        await writer.commit(token("r1", 2))
        assert not writer.degraded
    found = await other_store.get_request("r1")
    assert found is not None
    assert (found.attempts, found.tokens.count) == ((), 3)
    assert writer.stats.dropped_rejected == 2


async def test_close_writes_what_is_buffered(store: Store, other_store: Store) -> None:
    async with WriteBehind(store, flush_interval_ms=10_000) as writer:
        writer.put(REQUEST)
    assert await other_store.has_request("r1")
    assert not writer.put(REQUEST)
    assert writer.stats.dropped_full == 1


async def test_close_gives_up_in_time_and_counts_what_is_lost(store: Store, backend: Backend) -> None:
    changes = Degradation()
    async with WriteBehind(store, on_change=changes, close_timeout_s=0.05) as writer:
        await backend.go_down()
        writer.put(REQUEST)
        await changes.wait(True)
        writer.put(token("r1", 0))
    assert writer.stats.dropped_at_close == 2
    assert writer.buffered_bytes == 0
    await backend.come_back()


async def test_metrics_tell_what_was_written_and_what_was_not(store: Store) -> None:
    telemetry = Telemetry(TelemetryConfig(), "test", scrape=True)
    async with WriteBehind(store, instruments=telemetry.instruments) as writer, asyncio.timeout(WAIT_S):
        await writer.commit([REQUEST, token("r1", 0)])
        with pytest.raises(StoreRejected):
            await writer.commit(REFUSED)
        text = telemetry.prometheus_text().decode()
    assert 'paceline_store_writes_total{table="CheckpointRow"} 1.0' in text
    assert 'paceline_store_dropped_total{reason="rejected"} 1.0' in text
    assert "paceline_store_queue 0.0" in text or "paceline_store_queue_ratio 0.0" in text
    telemetry.shutdown()


async def test_a_malformed_checkpoint_is_refused_at_the_door(store: Store) -> None:
    async with WriteBehind(store) as writer:
        with pytest.raises(ValueError):
            writer.put(CheckpointRow("r1", 0, 2, b"\0" * 4, b"\0" * 8, b""))
        with pytest.raises(ValueError):
            await writer.commit([REQUEST, CheckpointRow("r1", 0, 2, b"\0" * 4, b"\0" * 8, b"")])
    assert writer.stats.rows_put == 0


class FakeFlakyStore:
    """Takes or refuses groups as a script says, and remembers the order of what it took."""

    def __init__(self, script: list[str]) -> None:
        self.script = script
        self.taken: list[Row] = []

    async def apply(self, rows: Sequence[Row], *, lease: Lease | None = None) -> None:
        await asyncio.sleep(0)
        outcome = self.script.pop(0) if self.script else "ok"
        if outcome == "down":
            raise StoreUnavailable("scripted")
        if outcome == "refused" and len(rows) > 1:
            raise StoreRejected("scripted")
        self.taken += rows

    async def ping(self) -> None: ...


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["ok", "down", "refused"]), max_size=6),
    st.integers(1, 5),
    st.lists(st.integers(0, 2), min_size=1, max_size=20),
)
def test_async_rows_keep_their_order_through_any_trouble(
    script: list[str], max_batch: int, owners: list[int]
) -> None:
    rows = [token(f"r{owner}", index) for index, owner in enumerate(owners)]
    store = FakeFlakyStore(script)

    async def scenario() -> None:
        async with WriteBehind(
            store, flush_interval_ms=0.1, max_batch=max_batch, close_timeout_s=WAIT_S
        ) as writer:
            for row in rows:
                assert writer.put(row)
                await asyncio.sleep(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paceline_store.write_behind.BACKOFF_MIN_S", 0.0001)
        asyncio.run(scenario())
    assert store.taken == rows


KILLED = """
import asyncio, sys
from paceline_store import RequestRow, Store, WriteBehind

async def main():
    store = await Store.open(sys.argv[1])
    async with WriteBehind(store) as writer:
        for number in range(1_000_000):
            await writer.commit(RequestRow(f"r{number}", "router-0", "m", "t", "a", 1, "{}", 3, number, b"spec"))
            print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_committed_survives_a_kill(backend: Backend) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, backend.url, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        last = -1
        while last < 40:
            last = int(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, (await process.stdout.read()).split(b"\n")[:-1])])
        await process.wait()
    store = await Store.open(backend.url)
    found = {one.request.request_id for one in await store.list_requests(1_000)}
    await store.close()
    assert {f"r{number}" for number in range(last + 1)} <= found


async def test_a_database_that_appears_later_is_prepared_by_the_first_write(tmp_path: Path) -> None:
    folder = tmp_path / "mounted later"
    url = f"sqlite:///{folder / 'store.db'}"
    with pytest.raises(StoreUnavailable):
        await Store.open(url)
    store = Store(Database(url), prepared=False)
    try:
        async with WriteBehind(store, flush_interval_ms=1) as writer:
            assert writer.put(REQUEST)
            with pytest.raises(StoreUnavailable):
                await writer.commit(token("r1", 0))
            assert writer.degraded
            folder.mkdir()
            assert await writer.flush(WAIT_S)
            await writer.commit(token("r1", 0))
        stored = await store.get_request("r1")
        assert stored is not None
        assert stored.tokens.count == 1
        assert writer.stats.dropped_rejected == 0
    finally:
        await store.close()
