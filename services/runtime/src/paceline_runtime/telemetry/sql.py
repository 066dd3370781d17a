"""Traces SQL statements: one span each, with the text of the statement and never its values.

Written here because the published instrumentation refuses the SQLAlchemy version in use.
"""

from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from paceline_runtime.telemetry.setup import Telemetry

DB_SYSTEM = "db.system.name"
DB_QUERY = "db.query.text"
_MAX_QUERY_CHARS = 1000


def trace_statements(telemetry: Telemetry, engine: Any) -> None:
    """Give each statement of a SQLAlchemy engine a span (of an async engine, pass its `sync_engine`)."""
    # Imported here: only services with a database have it installed.
    from sqlalchemy import event

    tracer = telemetry.tracer

    def before(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        operation = statement.split(None, 1)[0].upper() if statement.strip() else "SQL"
        context.paceline_span = tracer.start_span(
            operation,
            kind=SpanKind.CLIENT,
            attributes={DB_SYSTEM: engine.dialect.name, DB_QUERY: statement[:_MAX_QUERY_CHARS]},
        )

    def after(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        _end(context, None)

    def failed(fault: Any) -> None:
        if fault.execution_context is not None:
            _end(fault.execution_context, type(fault.original_exception).__name__)

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "handle_error", failed)


def _end(context: Any, fault: str | None) -> None:
    span: Span | None = getattr(context, "paceline_span", None)
    if span is None:
        return
    context.paceline_span = None
    if fault is not None:
        span.set_status(Status(StatusCode.ERROR, fault))
    span.end()
