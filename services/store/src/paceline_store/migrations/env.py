"""Alembic's entry: runs on the connection and inside the transaction that `paceline_store.migrate` hands over."""

from alembic import context

from paceline_store.tables import metadata

connection = context.config.attributes["connection"]
if connection is None:
    raise RuntimeError("migrations run through paceline_store.migrate, which holds the lock")
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite"
)
with context.begin_transaction():
    context.run_migrations()
