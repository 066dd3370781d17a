"""The one error tree of Paceline: a reason, and what it means on gRPC and HTTP.

Raise `PacelineError(Reason.X, "what happened and what to change")` anywhere; `status` maps it to the wire once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import grpc

ATTAINABLE_MS: Final = "attainable_ms"
"""Metadata of SLO_UNATTAINABLE: the budget that could have been met, milliseconds from the arrival of the request."""


class Reason(StrEnum):
    """Machine-readable cause, sent as `google.rpc.ErrorInfo.reason`. Names are stable."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    INVALID_SLO = "INVALID_SLO"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    NOT_FOUND = "NOT_FOUND"
    DUPLICATE_REQUEST = "DUPLICATE_REQUEST"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    QUEUE_FULL = "QUEUE_FULL"
    QUEUE_TTL_EXPIRED = "QUEUE_TTL_EXPIRED"
    TENANT_QUOTA = "TENANT_QUOTA"
    SLO_UNATTAINABLE = "SLO_UNATTAINABLE"
    NO_ENGINE = "NO_ENGINE"
    ENGINE_LOST = "ENGINE_LOST"
    ENGINE_ERROR = "ENGINE_ERROR"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    STATE_INCOMPATIBLE = "STATE_INCOMPATIBLE"
    FENCED = "FENCED"
    DRAINING = "DRAINING"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class ReasonSpec:
    """How one reason looks on both protocols, and whether the same request may succeed later."""

    code: grpc.StatusCode
    http_status: int
    retryable: bool = False


_C = grpc.StatusCode

REASONS: Mapping[Reason, ReasonSpec] = {
    Reason.INVALID_ARGUMENT: ReasonSpec(_C.INVALID_ARGUMENT, 400),
    Reason.INVALID_SLO: ReasonSpec(_C.INVALID_ARGUMENT, 400),
    Reason.CONTEXT_LENGTH_EXCEEDED: ReasonSpec(_C.INVALID_ARGUMENT, 400),
    Reason.UNKNOWN_MODEL: ReasonSpec(_C.NOT_FOUND, 404),
    Reason.MESSAGE_TOO_LARGE: ReasonSpec(_C.RESOURCE_EXHAUSTED, 413),
    Reason.NOT_FOUND: ReasonSpec(_C.NOT_FOUND, 404),
    Reason.DUPLICATE_REQUEST: ReasonSpec(_C.ALREADY_EXISTS, 409),
    Reason.UNAUTHENTICATED: ReasonSpec(_C.UNAUTHENTICATED, 401),
    Reason.PERMISSION_DENIED: ReasonSpec(_C.PERMISSION_DENIED, 403),
    Reason.QUEUE_FULL: ReasonSpec(_C.RESOURCE_EXHAUSTED, 429, retryable=True),
    Reason.QUEUE_TTL_EXPIRED: ReasonSpec(_C.DEADLINE_EXCEEDED, 504, retryable=True),
    Reason.TENANT_QUOTA: ReasonSpec(_C.RESOURCE_EXHAUSTED, 429, retryable=True),
    Reason.SLO_UNATTAINABLE: ReasonSpec(_C.FAILED_PRECONDITION, 409),
    Reason.NO_ENGINE: ReasonSpec(_C.UNAVAILABLE, 503, retryable=True),
    Reason.ENGINE_LOST: ReasonSpec(_C.UNAVAILABLE, 503, retryable=True),
    Reason.ENGINE_ERROR: ReasonSpec(_C.INTERNAL, 500),
    Reason.ATTEMPTS_EXHAUSTED: ReasonSpec(_C.ABORTED, 500),
    Reason.FAILED_PRECONDITION: ReasonSpec(_C.FAILED_PRECONDITION, 409),
    Reason.STATE_INCOMPATIBLE: ReasonSpec(_C.FAILED_PRECONDITION, 409),
    Reason.FENCED: ReasonSpec(_C.FAILED_PRECONDITION, 409),
    Reason.DRAINING: ReasonSpec(_C.UNAVAILABLE, 503, retryable=True),
    Reason.STORE_UNAVAILABLE: ReasonSpec(_C.UNAVAILABLE, 503, retryable=True),
    Reason.UNAVAILABLE: ReasonSpec(_C.UNAVAILABLE, 503, retryable=True),
    Reason.DEADLINE_EXCEEDED: ReasonSpec(_C.DEADLINE_EXCEEDED, 504, retryable=True),
    Reason.CANCELLED: ReasonSpec(_C.CANCELLED, 499),
    Reason.UNIMPLEMENTED: ReasonSpec(_C.UNIMPLEMENTED, 501),
    Reason.INTERNAL: ReasonSpec(_C.INTERNAL, 500),
}


class PacelineError(Exception):
    """A failure that a caller may see.

    `message` is for people: what happened and what to change. `retryable` defaults to what the reason says.
    `retry_after_ms` (milliseconds, None: not said) and `metadata` (short strings, e.g. the name of a field) go along.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after_ms: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retryable = REASONS[reason].retryable if retryable is None else retryable
        self.retry_after_ms = retry_after_ms
        self.metadata: dict[str, str] = dict(metadata or {})

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code of the reason."""
        return REASONS[self.reason].code

    @property
    def http_status(self) -> int:
        """The HTTP status of the reason."""
        return REASONS[self.reason].http_status


def invalid(
    message: str, *, field: str | None = None, reason: Reason = Reason.INVALID_ARGUMENT
) -> PacelineError:
    """An error about what the caller sent; `field` names the part at fault."""
    return PacelineError(reason, message, metadata={"field": field} if field else None)


def reason_of(name: str, default: Reason = Reason.INTERNAL) -> Reason:
    """The reason called `name`; `default` when a newer peer sent one that is not known here."""
    try:
        return Reason(name)
    except ValueError:
        return default
