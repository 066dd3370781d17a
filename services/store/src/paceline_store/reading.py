"""Rows out of the database."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, and_, exists, literal, null, or_, select
from sqlalchemy import Row as SqlRow
from sqlalchemy.ext.asyncio import AsyncConnection

from paceline_store.checkpoints import merge
from paceline_store.rows import (
    AttemptRow,
    CheckpointRow,
    ListedRequest,
    RequestRow,
    StoredRequest,
    StoredTask,
    TaskCallRow,
    TaskRow,
)
from paceline_store.tables import attempts, checkpoints, requests, task_calls, tasks

R = TypeVar("R", AttemptRow, CheckpointRow, TaskCallRow)

_LISTED = [
    literal(b"").label("spec")
    if column.name == "spec"
    else null().label("prompt_ids")
    if column.name == "prompt_ids"
    else column
    for column in requests.c
]


async def has_request(connection: AsyncConnection, request_id: str) -> bool:
    query = select(exists().where(requests.c.request_id == request_id))
    return bool((await connection.execute(query)).scalar_one())


async def get_request(connection: AsyncConnection, request_id: str) -> StoredRequest | None:
    found = await _stored(connection, requests.c.request_id == request_id)
    return found[0] if found else None


async def unfinished(connection: AsyncConnection, router_id: str) -> list[StoredRequest]:
    return await _stored(
        connection, and_(requests.c.router_id == router_id, requests.c.finished_unix_ms.is_(None))
    )


async def list_requests(
    connection: AsyncConnection,
    limit: int,
    state: int | None,
    tenant: str | None,
    before: tuple[int, str] | None,
) -> list[ListedRequest]:
    query = (
        select(*_LISTED)
        .order_by(requests.c.arrived_unix_ms.desc(), requests.c.request_id.desc())
        .limit(limit)
    )
    if state is not None:
        query = query.where(requests.c.state == state)
    if tenant is not None:
        query = query.where(requests.c.tenant == tenant)
    if before is not None:
        arrived_unix_ms, request_id = before
        query = query.where(
            or_(
                requests.c.arrived_unix_ms < arrived_unix_ms,
                and_(requests.c.arrived_unix_ms == arrived_unix_ms, requests.c.request_id < request_id),
            )
        )
    rows = [_request(row) for row in await connection.execute(query)]
    ids = [row.request_id for row in rows]
    attempt_rows = await connection.execute(
        select(attempts).where(attempts.c.request_id.in_(ids)).order_by(attempts.c.number)
    )
    by_id = _grouped(AttemptRow(**row._mapping) for row in attempt_rows)
    return [ListedRequest(row, tuple(by_id.get(row.request_id, ()))) for row in rows]


async def get_task(connection: AsyncConnection, task_id: str) -> StoredTask | None:
    found = await _stored_tasks(connection, tasks.c.task_id == task_id)
    return found[0] if found else None


async def open_tasks(connection: AsyncConnection, router_id: str) -> list[StoredTask]:
    return await _stored_tasks(
        connection, and_(tasks.c.router_id == router_id, tasks.c.ended_unix_ms.is_(None))
    )


async def _stored(connection: AsyncConnection, where: ColumnElement[bool]) -> list[StoredRequest]:
    rows = [_request(row) for row in await connection.execute(_oldest_first(select(requests).where(where)))]
    if not rows:
        return []
    ids = select(requests.c.request_id).where(where)
    attempt_query = select(attempts).where(attempts.c.request_id.in_(ids)).order_by(attempts.c.number)
    by_id = _grouped(AttemptRow(**row._mapping) for row in await connection.execute(attempt_query))
    token_query = select(checkpoints).where(checkpoints.c.request_id.in_(ids))
    tokens = _grouped(CheckpointRow(**row._mapping) for row in await connection.execute(token_query))
    return [
        StoredRequest(row, tuple(by_id.get(row.request_id, ())), merge(tokens.get(row.request_id, ())))
        for row in rows
    ]


async def _stored_tasks(connection: AsyncConnection, where: ColumnElement[bool]) -> list[StoredTask]:
    rows = [
        TaskRow(**row._mapping)
        for row in await connection.execute(select(tasks).where(where).order_by(tasks.c.began_unix_ms))
    ]
    if not rows:
        return []
    query = (
        select(task_calls)
        .where(task_calls.c.task_id.in_(select(tasks.c.task_id).where(where)))
        .order_by(task_calls.c.stage, task_calls.c.request_id)
    )
    calls: dict[str, list[TaskCallRow]] = {}
    for row in await connection.execute(query):
        calls.setdefault(row.task_id, []).append(TaskCallRow(**row._mapping))
    return [StoredTask(row, tuple(calls.get(row.task_id, ()))) for row in rows]


def _oldest_first(query: Select[tuple[object, ...]]) -> Select[tuple[object, ...]]:
    return query.order_by(requests.c.arrived_unix_ms, requests.c.request_id)


def _request(row: SqlRow[tuple[object, ...]]) -> RequestRow:
    return RequestRow(**row._mapping)


def _grouped(rows: Iterable[R]) -> dict[str, Sequence[R]]:
    groups: dict[str, list[R]] = {}
    for row in rows:
        groups.setdefault(row.request_id, []).append(row)
    return dict(groups)
