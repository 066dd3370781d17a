"""The store: what was promised, and how far it is. One object per process; WriteBehind writes off the token path."""

import asyncio
import time
from collections.abc import Callable, Sequence

from sqlalchemy import delete, select

from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.telemetry.sql import trace_statements
from paceline_store import leases, migrate, pruning, reading
from paceline_store.database import Database
from paceline_store.pruning import LedgerSize
from paceline_store.rows import Lease, ListedRequest, Row, StoredRequest, StoredTask
from paceline_store.statements import upsert
from paceline_store.tables import (
    attempts,
    checkpoints,
    engines,
    estimates,
    kv_state,
    outcomes,
    requests,
    task_calls,
    tasks,
)
from paceline_store.writing import write

MAX_LIST = 1_000
_OF_REQUESTS = (attempts, checkpoints, estimates, outcomes)


def _wall_clock_unix_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """Request state in SQLite or PostgreSQL.

    Every method raises StoreUnavailable when the database cannot be reached for now, and StoreRejected when it is up
    and refuses. Nothing is retried here: WriteBehind does that for writes, and readers decide for themselves.
    """

    def __init__(
        self,
        database: Database,
        *,
        now_unix_ms: Callable[[], int] = _wall_clock_unix_ms,
        prepared: bool = True,
    ) -> None:
        """`prepared`: the schema is up to date; if not, the first write that reaches the database brings it there."""
        self._database = database
        self._prepared = prepared
        self._preparing = asyncio.Lock()
        self._now_unix_ms = now_unix_ms

    @classmethod
    async def open(cls, url: str, *, migrate: bool = True, telemetry: Telemetry | None = None) -> "Store":
        """Connect, and bring the schema up to date (or only check it, with `migrate=False`).

        With `telemetry` each statement gets a span.

        Raises ValueError on a URL that is not understood, StoreUnavailable, or SchemaMismatch.
        """
        database = Database(url)
        if telemetry is not None:
            trace_statements(telemetry, database.engine.sync_engine)
        try:
            await database.prepare()
            await (_upgrade if migrate else _check)(database)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self._database.name

    async def close(self) -> None:
        """Close all connections."""
        await self._database.close()

    async def ping(self) -> None:
        """Take and give back the right to write: returns when the store would take rows."""
        await self._prepare()
        async with self._database.writing() as connection:
            await connection.execute(select(kv_state.c.name).limit(1))

    # leases

    async def acquire_lease(
        self, router_id: str, holder: str, ttl_s: float, *, take_over: bool = True
    ) -> Lease:
        """Become the current life of a router.

        The token is max(last + 1, Unix ms), so that it also outdoes lives that had no store. A restarted router takes
        over at once and the older life is fenced off; with `take_over=False` an unexpired lease of another holder
        raises LeaseHeld.
        """
        return await leases.acquire(
            self._database, router_id, holder, ttl_s, now_unix_ms=self._now_unix_ms(), take_over=take_over
        )

    async def renew_lease(self, lease: Lease) -> bool:
        """Extend by its ttl; False when a newer life has it."""
        return await leases.renew(self._database, lease, now_unix_ms=self._now_unix_ms())

    async def release_lease(self, lease: Lease) -> None:
        """Give the lease up, if it is still ours."""
        await leases.release(self._database, lease)

    # writes

    async def apply(self, rows: Sequence[Row], *, lease: Lease | None = None) -> None:
        """Write the rows in one transaction, in their order. With a lease: raises Fenced when a newer one was taken."""
        await self._prepare()
        async with self._database.writing() as connection:
            if lease is not None:
                await leases.ensure_current(connection, lease)
            await write(connection, rows)

    async def prune(self, ended_before_unix_ms: int, *, limit: int = 1_000) -> int:
        """Delete up to `limit` requests and tasks each, and lost engines, that ended before; returns how many went."""
        old = (
            select(requests.c.request_id)
            .where(requests.c.finished_unix_ms < ended_before_unix_ms)
            .order_by(requests.c.finished_unix_ms)
            .limit(limit)
        )
        old_tasks = (
            select(tasks.c.task_id)
            .where(tasks.c.ended_unix_ms < ended_before_unix_ms)
            .order_by(tasks.c.ended_unix_ms)
            .limit(limit)
        )
        async with self._database.writing() as connection:
            ids = list((await connection.execute(old)).scalars())
            for table in (*_OF_REQUESTS, requests):
                await connection.execute(delete(table).where(table.c.request_id.in_(ids)))
            task_ids = list((await connection.execute(old_tasks)).scalars())
            for table in (task_calls, tasks):
                await connection.execute(delete(table).where(table.c.task_id.in_(task_ids)))
            lost = await connection.execute(
                delete(engines).where(engines.c.lost_unix_ms < ended_before_unix_ms)
            )
        return len(ids) + len(task_ids) + lost.rowcount

    async def ended_size(self, before_unix_ms: int | None = None) -> LedgerSize:
        """How much has ended (before a time): what `prune` would delete."""
        async with self._database.reading() as connection:
            return await pruning.ended_size(connection, before_unix_ms)

    async def ended_before_for(self, max_bytes: int) -> int:
        """The time (Unix ms) to `prune` by so that requests and their tokens fit into `max_bytes`; 0: they do."""
        async with self._database.reading() as connection:
            return await pruning.ended_before_for(connection, max_bytes)

    async def _prepare(self) -> None:
        """What `open` would have done, had the database been there."""
        if self._prepared:
            return
        async with self._preparing:
            if not self._prepared:
                await self._database.prepare()
                await _upgrade(self._database)
                self._prepared = True

    # reads

    async def has_request(self, request_id: str) -> bool:
        """True if the id is taken."""
        async with self._database.reading() as connection:
            return await reading.has_request(connection, request_id)

    async def get_request(self, request_id: str) -> StoredRequest | None:
        """A request with its attempts and merged tokens."""
        async with self._database.reading() as connection:
            return await reading.get_request(connection, request_id)

    async def list_requests(
        self,
        limit: int,
        state: int | None = None,
        tenant: str | None = None,
        before: tuple[int, str] | None = None,
    ) -> list[ListedRequest]:
        """Requests, newest first, at most MAX_LIST. Specs and prompts are left out.

        `before` is (arrived_unix_ms, request_id) of the last one of the page before.
        """
        async with self._database.reading() as connection:
            return await reading.list_requests(
                connection, max(1, min(limit, MAX_LIST)), state, tenant, before
            )

    async def unfinished(self, router_id: str) -> list[StoredRequest]:
        """Requests of a router that have not ended, oldest first: what a new life adopts."""
        async with self._database.reading() as connection:
            return await reading.unfinished(connection, router_id)

    async def get_task(self, task_id: str) -> StoredTask | None:
        """A task with its calls."""
        async with self._database.reading() as connection:
            return await reading.get_task(connection, task_id)

    async def open_tasks(self, router_id: str) -> list[StoredTask]:
        """Tasks of a router that have not ended, oldest first."""
        async with self._database.reading() as connection:
            return await reading.open_tasks(connection, router_id)

    # state of learners

    async def save_state(self, name: str, blob: bytes) -> None:
        """Keep a blob under a name."""
        values = {"name": name, "blob": blob, "updated_unix_ms": self._now_unix_ms()}
        async with self._database.writing() as connection:
            await connection.execute(upsert(connection, kv_state), values)

    async def load_state(self, name: str) -> bytes | None:
        """The blob kept under a name."""
        async with self._database.reading() as connection:
            found = await connection.execute(select(kv_state.c.blob).where(kv_state.c.name == name))
            return found.scalar_one_or_none()


async def _upgrade(database: Database) -> None:
    await migrate.upgrade(database)


async def _check(database: Database) -> None:
    await migrate.check(database)
