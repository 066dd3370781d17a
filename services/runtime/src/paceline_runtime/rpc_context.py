"""The request that the current task works for: its id and its tenant, for logs and for calls further down."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

REQUEST_ID_KEY = "x-request-id"

_request_id: ContextVar[str] = ContextVar("paceline_request_id", default="")
_tenant: ContextVar[str] = ContextVar("paceline_tenant", default="")


def request_id() -> str:
    """The id of the request being served; empty outside of one."""
    return _request_id.get()


def tenant() -> str:
    """The tenant of the caller; empty when authentication is off."""
    return _tenant.get()


def new_request_id() -> str:
    """A fresh id, unique without coordination."""
    return uuid.uuid4().hex


@contextmanager
def bound(*, request_id: str | None = None, tenant: str | None = None) -> Iterator[None]:
    """Set the id, the tenant, or both for the block. Tasks started inside inherit them."""
    tokens = []
    if request_id is not None:
        tokens.append((_request_id, _request_id.set(request_id)))
    if tenant is not None:
        tokens.append((_tenant, _tenant.set(tenant)))
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
