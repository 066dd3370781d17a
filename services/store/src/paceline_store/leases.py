"""Router leases: one row per router id, with a token that grows with every life."""

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from paceline_store.database import Database
from paceline_store.errors import Fenced, LeaseHeld
from paceline_store.rows import Lease
from paceline_store.statements import upsert
from paceline_store.tables import router_leases


async def acquire(
    database: Database, router_id: str, holder: str, ttl_s: float, *, now_unix_ms: int, take_over: bool
) -> Lease:
    """See Store.acquire_lease."""
    async with database.writing() as connection:
        query = select(router_leases).where(router_leases.c.router_id == router_id).with_for_update()
        row = (await connection.execute(query)).one_or_none()
        if row is not None and not take_over and row.holder != holder and row.expires_unix_ms > now_unix_ms:
            raise LeaseHeld(
                f"router id {router_id!r} is in use by {row.holder!r} for {row.expires_unix_ms - now_unix_ms} ms more"
            )
        token = max(row.fencing_token + 1 if row is not None else 0, now_unix_ms)
        expires_unix_ms = now_unix_ms + round(ttl_s * 1000)
        values = {
            "router_id": router_id,
            "holder": holder,
            "fencing_token": token,
            "expires_unix_ms": expires_unix_ms,
        }
        written = await connection.execute(
            upsert(
                connection,
                router_leases,
                only_if=lambda new: router_leases.c.fencing_token < new.fencing_token,
            ),
            values,
        )
        if written.rowcount == 0:
            # Two first lives at the same millisecond: the other one was faster.
            raise LeaseHeld(f"router id {router_id!r} was taken by another process this very moment")
    return Lease(router_id, token, expires_unix_ms / 1000, holder, ttl_s)


async def renew(database: Database, lease: Lease, *, now_unix_ms: int) -> bool:
    """True while the lease is still ours."""
    async with database.writing() as connection:
        result = await connection.execute(
            update(router_leases)
            .where(
                router_leases.c.router_id == lease.router_id,
                router_leases.c.fencing_token == lease.fencing_token,
            )
            .values(expires_unix_ms=now_unix_ms + round(lease.ttl_s * 1000))
        )
    return result.rowcount == 1


async def release(database: Database, lease: Lease) -> None:
    """Let the lease run out now. The row stays: its token must keep growing."""
    async with database.writing() as connection:
        await connection.execute(
            update(router_leases)
            .where(
                router_leases.c.router_id == lease.router_id,
                router_leases.c.fencing_token == lease.fencing_token,
            )
            .values(expires_unix_ms=0)
        )


async def ensure_current(connection: AsyncConnection, lease: Lease) -> None:
    """Inside a transaction: raises Fenced when a newer life has the lease, and holds off new ones until its end."""
    query = (
        select(router_leases.c.fencing_token)
        .where(router_leases.c.router_id == lease.router_id)
        .with_for_update(read=True)
    )
    token = (await connection.execute(query)).scalar_one_or_none()
    if token is None or token > lease.fencing_token:
        raise Fenced(f"a newer life of router {lease.router_id!r} has taken over (fencing token {token})")
