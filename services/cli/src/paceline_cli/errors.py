"""One clear line for every failure a user can meet; the traceback only with --debug."""

import os
import sys

import grpc
import typer

from paceline_cli.errors_base import CommandError
from paceline_cli.stack.ports import PortConflictError
from paceline_cli.stack.statefile import StateDirBusyError
from paceline_cli.stack.supervisor import StackStartError
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import PacelineError
from paceline_runtime.status import from_rpc_error

EXIT_FAILED = 1
EXIT_USAGE = 2

DEBUG_VARIABLE = "PACELINE_DEBUG"


def message_of(error: BaseException) -> str | None:
    """The line for the user; None for a defect of ours."""
    if isinstance(error, BaseExceptionGroup):
        lines = [message_of(inner) for inner in error.exceptions]
        return None if any(line is None for line in lines) else "; ".join(line for line in lines if line)
    if isinstance(error, ConfigError):
        return "\n  ".join(["the configuration cannot be used:", *error.problems])
    if isinstance(error, CommandError | PortConflictError | StateDirBusyError | StackStartError):
        return str(error)
    if isinstance(error, PacelineError):
        return f"{error.message} ({error.reason.value})"
    if isinstance(error, grpc.RpcError):
        return message_of(from_rpc_error(error))
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return f"{error.filename}: {error.strerror}"
    return None


def run_app(app: typer.Typer) -> None:
    """Run the command line; ends the process."""
    try:
        app()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        # The edge of the program: everything that nobody below could handle ends here, in one line.
        line = message_of(error)
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        if line is None:
            line = (
                f"{type(error).__name__}: {error} (a defect of paceline: run again with --debug for details)"
            )
        print(f"paceline: {line}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
