"""Upserts that read the same on SQLite and PostgreSQL."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Condition = Callable[[Any], ColumnElement[bool]]


def upsert(
    connection: AsyncConnection,
    table: Table,
    *,
    update: Sequence[str] | None = None,
    only_if: Condition | None = None,
) -> sqlite.Insert | postgresql.Insert:
    """INSERT that replaces the columns of `update` (all but the key when None) of a row with the same primary key.

    `only_if(new)` restricts the replacement; `new` has the columns of the row that was to be inserted.
    """
    keys = [column.name for column in table.primary_key]
    names = (
        [column.name for column in table.columns if column.name not in keys]
        if update is None
        else list(update)
    )
    statement: Any = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
    where = only_if(statement.excluded) if only_if is not None else None
    changes = {name: statement.excluded[name] for name in names}
    made: sqlite.Insert | postgresql.Insert = statement.on_conflict_do_update(
        index_elements=keys, set_=changes, where=where
    )
    return made
