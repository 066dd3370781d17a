"""One async SQLAlchemy engine per URL, with what SQLite and PostgreSQL each need to be safe under concurrency."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from paceline_store.errors import CAUGHT, StoreUnavailable, translated

BUSY_TIMEOUT_MS = 5_000
"""How long a SQLite connection waits for another process's write."""
CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 15.0
_WAL_ATTEMPTS = 100
_WAL_PAUSE_S = 0.05
_WRITING = "paceline_writing"


def parse_url(url: str) -> URL:
    """The URL with its async driver; plain `sqlite:` and `postgresql:` are understood.

    Raises ValueError on other databases and on in-memory SQLite (its connections would not share one database).
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(f"not a database URL: {error}") from None
    match parsed.get_backend_name():
        case "sqlite":
            if parsed.database in (None, "", ":memory:") or "mode=memory" in str(parsed.database):
                raise ValueError("the store needs a SQLite file, e.g. sqlite+aiosqlite:///paceline.db")
            return parsed.set(drivername="sqlite+aiosqlite")
        case "postgresql":
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise ValueError(f"the store speaks SQLite and PostgreSQL, not {other}")


class Database:
    """Connections for reading and for writing; every driver error leaves as one of `paceline_store.errors`."""

    def __init__(self, url: str, *, pool_size: int = 4) -> None:
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite(self.url, pool_size) if self.is_sqlite else _postgresql(self.url, pool_size)
        # SQLite has one writer: waiting for the turn here costs no thread and no busy loop.
        self._turn = asyncio.Lock() if self.is_sqlite else None

    @property
    def name(self) -> str:
        """The URL without its password, for logs."""
        return self.url.render_as_string(hide_password=True)

    async def prepare(self) -> None:
        """Check that the database can be reached; put SQLite into WAL mode (it stays so)."""
        if not self.is_sqlite:
            async with self.reading() as connection:
                await connection.exec_driver_sql("SELECT 1")
            return
        self._check_folder()
        for attempt in range(_WAL_ATTEMPTS):
            try:
                await self._enter_wal()
                return
            except StoreUnavailable as error:
                # The switch needs the file alone for a moment and does not honour the busy timeout.
                if "locked" not in error.message or attempt == _WAL_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(_WAL_PAUSE_S)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reads, in one consistent snapshot on SQLite."""
        try:
            async with self.engine.connect() as connection:
                yield connection
        except CAUGHT as error:
            raise translated(error) from error

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end of the block; rolled back when the block raises."""
        if self._turn is None:
            async with self._transaction() as connection:
                yield connection
        else:
            async with self._turn, self._transaction() as connection:
                yield connection

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self.engine.connect() as connection:
                await connection.execution_options(**{_WRITING: True})
                async with connection.begin():
                    yield connection
        except CAUGHT as error:
            raise translated(error) from error

    def _check_folder(self) -> None:
        folder = Path(self.url.database or "").absolute().parent
        if not folder.is_dir():
            raise StoreUnavailable(f"the folder of the database does not exist: {folder}")

    async def _enter_wal(self) -> None:
        async with self.reading() as connection:
            # Outside of a transaction, which SQLAlchemy would begin for us: straight to the driver.
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            async with driver.execute("PRAGMA journal_mode=WAL") as cursor:
                mode = (await cursor.fetchone())[0]
        if mode != "wal":
            raise StoreUnavailable(
                f"the file system of {self.name} does not support WAL (journal mode {mode})"
            )


def _sqlite(url: URL, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # Without an isolation level the driver leaves BEGIN to us.
        connection.isolation_level = None
        cursor = connection.cursor()
        # A commit survives the death of the process; the last ones may not survive a power cut (SQLite documentation,
        # "PRAGMA synchronous": WAL with NORMAL is consistent, not durable across power loss).
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A transaction that will write takes the lock at once: a deferred one could not wait for it later.
        writing = connection.get_execution_options().get(_WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _postgresql(url: URL, pool_size: int) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": STATEMENT_TIMEOUT_S},
    )
