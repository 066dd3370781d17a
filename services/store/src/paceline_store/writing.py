"""Rows into the database: one transaction for a whole batch."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from paceline_store import tables
from paceline_store.checkpoints import joined
from paceline_store.folding import CHANGED, fold
from paceline_store.rows import (
    AttemptRow,
    CheckpointRow,
    EngineRow,
    EstimateRow,
    OutcomeRow,
    RequestChange,
    RequestRow,
    Row,
    TaskCallRow,
    TaskRow,
)
from paceline_store.statements import upsert

TABLE_OF: dict[type[Row], Table] = {
    RequestRow: tables.requests,
    AttemptRow: tables.attempts,
    CheckpointRow: tables.checkpoints,
    TaskRow: tables.tasks,
    TaskCallRow: tables.task_calls,
    EngineRow: tables.engines,
    EstimateRow: tables.estimates,
    OutcomeRow: tables.outcomes,
}

_columns = tables.requests.c
_CHANGE = (
    update(tables.requests)
    .where(_columns.request_id == bindparam("key"))
    .values(
        state=bindparam("new_state"),
        **{
            name: func.coalesce(bindparam(f"new_{name}", type_=_columns[name].type), _columns[name])
            for name in CHANGED
        },
    )
)


async def write(connection: AsyncConnection, rows: Iterable[Row]) -> None:
    """Write rows, in the order in which they were put, inside the connection's transaction."""
    folded = fold(rows)
    await _upsert(connection, RequestRow, folded.requests)
    if folded.changes:
        await connection.execute(_CHANGE, [_change_values(change) for change in folded.changes])
    if folded.checkpoints:
        # Only a longer one replaces: a shorter one is a late repetition.
        longer = upsert(
            connection, tables.checkpoints, only_if=lambda new: tables.checkpoints.c.count < new.count
        )
        await connection.execute(longer, [_values(row) for row in folded.checkpoints])
    for kind, by_key in folded.others.items():
        await _upsert(connection, kind, list(by_key.values()))
    await _compact(connection, folded.finished_ids())


async def _upsert(connection: AsyncConnection, kind: type[Row], rows: Sequence[Row]) -> None:
    if rows:
        await connection.execute(upsert(connection, TABLE_OF[kind]), [_values(row) for row in rows])


async def _compact(connection: AsyncConnection, request_ids: list[str]) -> None:
    """Make the checkpoints of ended requests one row each."""
    if not request_ids:
        return
    table = tables.checkpoints
    found: dict[str, list[CheckpointRow]] = {}
    for row in await connection.execute(select(table).where(table.c.request_id.in_(request_ids))):
        found.setdefault(row.request_id, []).append(CheckpointRow(**row._mapping))
    replaced = {key: few for key, rows in found.items() if len(few := joined(rows)) < len(rows)}
    if replaced:
        await connection.execute(delete(table).where(table.c.request_id.in_(list(replaced))))
        await connection.execute(table.insert(), [_values(row) for rows in replaced.values() for row in rows])


def _values(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _change_values(change: RequestChange) -> dict[str, Any]:
    new = {f"new_{name}": getattr(change, name) for name in CHANGED}
    return {"key": change.request_id, "new_state": change.state, **new}
