"""The schema, as SQLAlchemy Core tables. `migrations/` brings a database here; a test holds the two together.

There are no foreign keys: rows arrive through a write-behind that may lose one under pressure, and one missing parent
must not turn every later row of a request away.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

_SIGN = 1 << 63
_WRAP = 1 << 64


class UInt64(TypeDecorator[int]):
    """fixed64 in a signed 64-bit column: values from 2^63 on are stored as their two's complement."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        if not 0 <= value < _WRAP:
            raise ValueError(f"not an unsigned 64-bit number: {value}")
        return value - _WRAP if value >= _SIGN else value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value) % _WRAP


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("router_id", String(128), nullable=False),
    Column("model", String(256), nullable=False),
    Column("tenant", String(256), nullable=False),
    Column("app", String(64), nullable=False),
    Column("state", Integer, nullable=False),
    Column("slo_json", Text, nullable=False),
    Column("durability", Integer, nullable=False),
    Column("arrived_unix_ms", BigInteger, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("prompt_ids", LargeBinary),
    Column("prompt_tokens", Integer, nullable=False),
    Column("max_tokens", Integer, nullable=False),
    Column("task_id", String(128), nullable=False),
    Column("finished", LargeBinary),
    Column("finished_unix_ms", BigInteger),
)
Index("ix_requests_arrival", requests.c.arrived_unix_ms, requests.c.request_id)
Index("ix_requests_tenant_arrival", requests.c.tenant, requests.c.arrived_unix_ms, requests.c.request_id)
Index("ix_requests_finished_unix_ms", requests.c.finished_unix_ms)
_unfinished = text("finished_unix_ms IS NULL")
Index("ix_requests_unfinished", requests.c.router_id, sqlite_where=_unfinished, postgresql_where=_unfinished)

attempts = Table(
    "attempts",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt_key", UInt64, nullable=False),
    Column("engine_id", String(128), nullable=False),
    Column("incarnation", UInt64, nullable=False),
    Column("reason", Text, nullable=False),
    Column("from_index", Integer, nullable=False),
    Column("finish_reason", Integer, nullable=False),
    Column("placed_unix_ms", BigInteger, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("first_index", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("token_ids", LargeBinary, nullable=False),
    Column("text_lengths", LargeBinary, nullable=False),
    Column("text", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("task_id", String(128), primary_key=True),
    Column("router_id", String(128), nullable=False),
    Column("app", String(64), nullable=False),
    Column("tenant", String(256), nullable=False),
    Column("e2e_ms", Float(53), nullable=False),
    Column("began_unix_ms", BigInteger, nullable=False),
    Column("ended_unix_ms", BigInteger),
    Column("attained", Boolean),
    Column("calls", Integer, nullable=False),
)
_open = text("ended_unix_ms IS NULL")
Index("ix_tasks_open", tasks.c.router_id, sqlite_where=_open, postgresql_where=_open)
Index("ix_tasks_ended_unix_ms", tasks.c.ended_unix_ms)

task_calls = Table(
    "task_calls",
    metadata,
    Column("task_id", String(128), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("parents_json", Text, nullable=False),
)

engines = Table(
    "engines",
    metadata,
    Column("engine_id", String(128), primary_key=True),
    Column("incarnation", UInt64, primary_key=True, autoincrement=False),
    Column("scheduler_endpoint", Text, nullable=False),
    Column("capabilities", LargeBinary, nullable=False),
    Column("first_seen_unix_ms", BigInteger, nullable=False),
    Column("lost_unix_ms", BigInteger),
)

estimates = Table(
    "estimates",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("at_index", Integer, primary_key=True),
    Column("source", String(32), nullable=False),
    Column("model_version", String(128), nullable=False),
    Column("p50", Float(53), nullable=False),
    Column("p90", Float(53), nullable=False),
    Column("probabilities", LargeBinary, nullable=False),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("output_tokens", Integer, nullable=False),
    Column("attained", Boolean),
    Column("ttft_ms", Float(53)),
    Column("tbt_mean_ms", Float(53)),
    Column("ttlt_ms", Float(53)),
    Column("tokens_in_time", Integer, nullable=False),
)

router_leases = Table(
    "router_leases",
    metadata,
    Column("router_id", String(128), primary_key=True),
    Column("holder", String(256), nullable=False),
    Column("fencing_token", BigInteger, nullable=False),
    Column("expires_unix_ms", BigInteger, nullable=False),
)

kv_state = Table(
    "kv_state",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("blob", LargeBinary, nullable=False),
    Column("updated_unix_ms", BigInteger, nullable=False),
)
