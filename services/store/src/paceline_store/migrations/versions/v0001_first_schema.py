"""First schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out, not taken from `paceline_store.tables`: what a revision did must not change when the tables do.


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("router_id", sa.String(128), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("tenant", sa.String(256), nullable=False),
        sa.Column("app", sa.String(64), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("slo_json", sa.Text, nullable=False),
        sa.Column("durability", sa.Integer, nullable=False),
        sa.Column("arrived_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("prompt_ids", sa.LargeBinary),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("max_tokens", sa.Integer, nullable=False),
        sa.Column("task_id", sa.String(128), nullable=False),
        sa.Column("finished", sa.LargeBinary),
        sa.Column("finished_unix_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_arrival", "requests", ["arrived_unix_ms", "request_id"])
    op.create_index("ix_requests_tenant_arrival", "requests", ["tenant", "arrived_unix_ms", "request_id"])
    op.create_index("ix_requests_finished_unix_ms", "requests", ["finished_unix_ms"])
    _create_partial_index("ix_requests_unfinished", "requests", "router_id", "finished_unix_ms IS NULL")
    op.create_table(
        "attempts",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("attempt_key", sa.BigInteger, nullable=False),
        sa.Column("engine_id", sa.String(128), nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("from_index", sa.Integer, nullable=False),
        sa.Column("finish_reason", sa.Integer, nullable=False),
        sa.Column("placed_unix_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "number", name="pk_attempts"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("first_index", sa.Integer, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("token_ids", sa.LargeBinary, nullable=False),
        sa.Column("text_lengths", sa.LargeBinary, nullable=False),
        sa.Column("text", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "first_index", name="pk_checkpoints"),
    )
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.String(128), nullable=False),
        sa.Column("router_id", sa.String(128), nullable=False),
        sa.Column("app", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(256), nullable=False),
        sa.Column("e2e_ms", sa.Float(53), nullable=False),
        sa.Column("began_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_unix_ms", sa.BigInteger),
        sa.Column("attained", sa.Boolean),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("task_id", name="pk_tasks"),
    )
    _create_partial_index("ix_tasks_open", "tasks", "router_id", "ended_unix_ms IS NULL")
    op.create_index("ix_tasks_ended_unix_ms", "tasks", ["ended_unix_ms"])
    op.create_table(
        "task_calls",
        sa.Column("task_id", sa.String(128), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("parents_json", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "request_id", name="pk_task_calls"),
    )
    op.create_table(
        "engines",
        sa.Column("engine_id", sa.String(128), nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("scheduler_endpoint", sa.Text, nullable=False),
        sa.Column("capabilities", sa.LargeBinary, nullable=False),
        sa.Column("first_seen_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("lost_unix_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("engine_id", "incarnation", name="pk_engines"),
    )
    op.create_table(
        "estimates",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("at_index", sa.Integer, nullable=False),
        sa.Column("source", sa.String(32), nullable=False),
        sa.Column("model_version", sa.String(128), nullable=False),
        sa.Column("p50", sa.Float(53), nullable=False),
        sa.Column("p90", sa.Float(53), nullable=False),
        sa.Column("probabilities", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "at_index", name="pk_estimates"),
    )
    op.create_table(
        "outcomes",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("attained", sa.Boolean),
        sa.Column("ttft_ms", sa.Float(53)),
        sa.Column("tbt_mean_ms", sa.Float(53)),
        sa.Column("ttlt_ms", sa.Float(53)),
        sa.Column("tokens_in_time", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_outcomes"),
    )
    op.create_table(
        "router_leases",
        sa.Column("router_id", sa.String(128), nullable=False),
        sa.Column("holder", sa.String(256), nullable=False),
        sa.Column("fencing_token", sa.BigInteger, nullable=False),
        sa.Column("expires_unix_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("router_id", name="pk_router_leases"),
    )
    op.create_table(
        "kv_state",
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.Column("updated_unix_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_kv_state"),
    )


def downgrade() -> None:
    for table in (
        "kv_state", "router_leases", "outcomes", "estimates", "engines",
        "task_calls", "tasks", "checkpoints", "attempts", "requests",
    ):  # fmt: skip
        op.drop_table(table)


def _create_partial_index(name: str, table: str, column: str, where: str) -> None:
    op.create_index(name, table, [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
