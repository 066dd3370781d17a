"""PacelineError to the wire and back: google.rpc.Status with ErrorInfo and RetryInfo, and HTTP headers."""

import math
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from paceline_runtime.errors import PacelineError, Reason, reason_of

DOMAIN = "paceline"
DETAILS_KEY = "grpc-status-details-bin"
_RETRYABLE_KEY = "retryable"
# Peers refuse header blocks over 8 KB. The message is in one twice: percent-encoded, up to three bytes for each of its
# own, and in the details, which are base64.
_MAX_MESSAGE_BYTES = 1500
_MAX_METADATA_BYTES = 100

_BY_CODE: dict[grpc.StatusCode, Reason] = {
    grpc.StatusCode.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE: Reason.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND: Reason.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Reason.DUPLICATE_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    # Without our details this is the transport's own limit on the size of a message.
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.MESSAGE_TOO_LARGE,
    grpc.StatusCode.FAILED_PRECONDITION: Reason.FAILED_PRECONDITION,
    grpc.StatusCode.UNAVAILABLE: Reason.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Reason.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED: Reason.UNIMPLEMENTED,
}


def to_status(error: PacelineError) -> status_pb2.Status:
    """The error as google.rpc.Status."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, _MAX_METADATA_BYTES)
    info.metadata[_RETRYABLE_KEY] = "true" if error.retryable else "false"
    status = status_pb2.Status(code=_number(error.code), message=message_of(error))
    _pack(status, info)
    if error.retry_after_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_ms * 1e6))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def message_of(error: PacelineError) -> str:
    """The error's message, as much of it as a status can carry."""
    return _cut(error.message, _MAX_MESSAGE_BYTES)


def from_status(status: status_pb2.Status) -> PacelineError:
    """The error in a google.rpc.Status. Unknown reasons become the nearest one of the same code."""
    fallback = _BY_CODE.get(_code(status.code), Reason.INTERNAL)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_info = has_retry = False
    for detail in status.details:
        has_info = detail.Unpack(info) or has_info
        has_retry = detail.Unpack(retry) or has_retry
    metadata = dict(info.metadata)
    retryable = metadata.pop(_RETRYABLE_KEY, None)
    return PacelineError(
        reason_of(info.reason, fallback) if has_info else fallback,
        status.message,
        retryable=None if retryable is None else retryable == "true",
        retry_after_ms=retry.retry_delay.ToNanoseconds() / 1e6 if has_retry else None,
        metadata=metadata,
    )


def details_of(error: grpc.RpcError) -> PacelineError | None:
    """The error that a Paceline service put into a failed call; None if the status carries no such details."""
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                return None
            return from_status(status) if _code(status.code) is call.code() else None
    return None


def from_rpc_error(error: grpc.RpcError) -> PacelineError:
    """What a failed call said, for `grpc.aio` and blocking calls alike.

    A status without Paceline's details (the transport's own, or another server's) maps by its code.
    """
    call: Any = error
    code: grpc.StatusCode = call.code()
    return details_of(error) or PacelineError(
        _BY_CODE.get(code, Reason.INTERNAL), call.details() or code.name
    )


def trailing_metadata(error: PacelineError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the details of the error."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def http_headers(error: PacelineError) -> dict[str, str]:
    """HTTP headers that go with the error: `Retry-After` in whole seconds, rounded up (RFC 9110, 10.2.3)."""
    if error.retry_after_ms is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_ms / 1000)))}


def _cut(text: str, most_bytes: int) -> str:
    """The beginning of a text, no character split."""
    return text.encode(errors="replace")[:most_bytes].decode(errors="ignore")


def _pack(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _code(number: int) -> grpc.StatusCode:
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)
