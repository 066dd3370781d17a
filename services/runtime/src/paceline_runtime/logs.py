"""Logs: one JSON object a line, or plain lines on a terminal, each with the id of the request it is about."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

from opentelemetry.trace import format_trace_id, get_current_span

from paceline_runtime import rpc_context
from paceline_runtime.config_model import ConfigModel

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogConfig(ConfigModel):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json`: one object a line; `console`: for people; `auto`: console on a terminal, else json."""


def setup_logging(config: LogConfig, service: str, stream: TextIO | None = None) -> None:
    """Send all logs of the process to `stream` (default: standard error). Replaces earlier set-ups."""
    stream = stream or sys.stderr
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ConsoleFormatter(service) if console else JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What was passed as `extra`, and what the context knows."""
    fields: dict[str, object] = {}
    if request_id := rpc_context.request_id():
        fields["request_id"] = request_id
    if tenant := rpc_context.tenant():
        fields["tenant"] = tenant
    span = get_current_span().get_span_context()
    if span.is_valid:
        fields["trace_id"] = format_trace_id(span.trace_id)
    fields.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, logger, message, then the fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """Time, level, service, message, `key=value` fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, and its exception below."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{time} {record.levelname[0]} {self._service:<10} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
