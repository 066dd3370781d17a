"""Brings a database to the newest schema, by one process at a time."""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from paceline_store.database import Database
from paceline_store.errors import SchemaMismatch

_log = logging.getLogger(__name__)

_LOCK_KEY = 0x7061_6365_6C69_6E65  # "paceline"


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration: scripts from this package, no ini file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(config()).get_current_head()
    assert revision is not None
    return revision


async def upgrade(database: Database) -> None:
    """Upgrade to head. Openers that come together wait for the first; it is all done in one transaction.

    Raises SchemaMismatch when the database was made by a newer version.
    """
    newest = head()
    async with database.reading() as connection:
        if await connection.run_sync(_current) == newest:
            return
    # BEGIN IMMEDIATE is the lock on SQLite; on PostgreSQL an advisory one goes with the transaction.
    async with database.writing() as connection:
        if not database.is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        before = await connection.run_sync(_current)
        await connection.run_sync(_upgrade)
    if before != newest:
        _log.info("store migrated", extra={"from_revision": before or "empty", "to_revision": newest})


async def check(database: Database) -> None:
    """Raises SchemaMismatch unless the schema is the newest one."""
    async with database.reading() as connection:
        current = await connection.run_sync(_current)
    if current != head():
        raise SchemaMismatch(
            f"the schema of {database.name} is at {current or 'nothing'}, this version needs {head()}"
        )


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        raise SchemaMismatch(f"the database was made by a newer version of Paceline: {error}") from error
