"""Migrations: they make the schema that the code expects, once, whoever comes first."""

import asyncio
import os
import sys
from typing import Protocol

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from paceline_store import SchemaMismatch, Store, StoreUnavailable, migrate
from paceline_store.database import Database
from paceline_store.tables import metadata


class Backend(Protocol):
    """See conftest."""

    name: str
    url: str


OPEN = """
import asyncio, sys
from paceline_store import Store

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    store = await Store.open(sys.argv[1])
    await store.save_state(sys.argv[2], b"here")
    await store.close()

asyncio.run(main())
"""


async def test_models_and_migrations_agree(store: Store) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, metadata))

    async with store._database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_processes_that_open_at_once_all_succeed(backend: Backend) -> None:
    openers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OPEN,
            backend.url,
            f"process-{i}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )
        for i in range(2)
    ]
    async with asyncio.timeout(200):
        for opener in openers:
            assert opener.stdout is not None
            assert await opener.stdout.readline() == b"ready\n"
        ended = await asyncio.gather(*(opener.communicate(b"go\n") for opener in openers))
    assert [opener.returncode for opener in openers] == [0, 0], ended
    store = await Store.open(backend.url)
    assert [await store.load_state(f"process-{i}") for i in range(2)] == [b"here"] * 2
    await store.close()


async def test_a_database_of_a_newer_version_is_refused(store: Store, backend: Backend) -> None:
    async with store._database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="newer version"):
        await Store.open(backend.url)


async def test_without_migrating_an_empty_database_is_refused(backend: Backend) -> None:
    with pytest.raises(SchemaMismatch, match="nothing"):
        await Store.open(backend.url, migrate=False)
    await (await Store.open(backend.url)).close()
    await (await Store.open(backend.url, migrate=False)).close()


async def test_a_migration_can_be_taken_back_and_made_again(backend: Backend) -> None:
    from alembic import command

    database = Database(backend.url)
    await database.prepare()
    for _ in range(2):
        await migrate.upgrade(database)
        async with database.writing() as connection:
            await connection.run_sync(lambda c: command.downgrade(migrate.config(c), "base"))
    await database.close()


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "sqlite:///:memory:", "not a url", ""])
async def test_urls_that_make_no_sense_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        await Store.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/at/all/ledger.db",
        "postgresql://user:secret@127.0.0.1:1/none",
        "postgresql:///x?host=/nowhere",
    ],
)
async def test_a_database_that_cannot_be_reached_says_so(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await Store.open(url)
    assert "secret" not in str(caught.value)


def test_names_hide_the_password() -> None:
    assert "secret" not in Database("postgresql://user:secret@127.0.0.1/none").name
