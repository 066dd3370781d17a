"""What can go wrong with the store, and how the drivers' exceptions map to it."""

import asyncpg
from sqlalchemy import exc

from paceline_runtime.errors import PacelineError, Reason

# SQLSTATE classes of PostgreSQL that say "not now" (PostgreSQL documentation, appendix A): connection, read only,
# authorization, database missing, serialization and deadlock, resources, prerequisite state, operator intervention.
# A wrong password or a missing database is no reason to throw rows away: somebody can put it right.
_UNAVAILABLE_SQLSTATES = ("08", "25006", "28", "3D", "40001", "40P01", "53", "55", "57")
# SQLite says everything with OperationalError; these texts mean a defect of schema or statement, not of the moment.
_SQLITE_DEFECTS = ("no such table", "no such column", "has no column", "syntax error", "too many")


class StoreUnavailable(PacelineError):
    """The store cannot be reached, is locked or full, or refuses work for now. Worth trying again later."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORE_UNAVAILABLE, message)


class StoreRejected(PacelineError):
    """The store is up and refuses this very row or statement: trying again would give the same."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INTERNAL, message)


class SchemaMismatch(PacelineError):
    """The database was migrated by a newer Paceline, or was not migrated at all."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.FAILED_PRECONDITION, message)


class Fenced(PacelineError):
    """A newer life of the same router holds the lease: this one must not write any more."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.FENCED, message)


class LeaseHeld(PacelineError):
    """Another holder's lease has not run out, and it was asked not to take it over."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.FAILED_PRECONDITION, message)


CAUGHT = (exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""What the drivers raise; anything else is a defect of ours and passes through."""


def translated(error: BaseException) -> PacelineError:
    """The error of this module for one of `CAUGHT`."""
    text = _first_line(error)
    if _is_unavailable(error):
        return StoreUnavailable(f"the store is not available: {text}")
    return StoreRejected(f"the store refused the statement: {text}")


def _is_unavailable(error: BaseException) -> bool:
    if isinstance(error, exc.StatementError) and not isinstance(error, exc.DBAPIError):
        return False
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated:
            return True
        if isinstance(error, exc.OperationalError) and _sqlstate(error) is None:
            return not any(text in str(error.orig) for text in _SQLITE_DEFECTS)
        return _is_unavailable_sqlstate(_sqlstate(error)) or isinstance(error, exc.InterfaceError)
    if isinstance(error, asyncpg.PostgresError):
        return _is_unavailable_sqlstate(error.sqlstate)
    # Pool time-outs, refused or broken connections, closed drivers.
    return True


def _is_unavailable_sqlstate(sqlstate: str | None) -> bool:
    return sqlstate is not None and sqlstate.startswith(_UNAVAILABLE_SQLSTATES)


def _sqlstate(error: exc.DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None


def _first_line(error: BaseException) -> str:
    # The driver's own words: SQLAlchemy adds the statement and its parameters, which hold prompts.
    cause: BaseException = error.orig if isinstance(error, exc.DBAPIError) and error.orig else error
    lines = str(cause).splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"
