"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with the status the reason has."""

import json
from typing import Any

from starlette.responses import Response

from paceline_runtime.errors import ATTAINABLE_MS, PacelineError, Reason
from paceline_runtime.status import http_headers

# Retry-After of refusals that may succeed later, when whoever refused did not say.
_DEFAULT_RETRY_MS = 1000.0

BODY_TOO_LARGE = "body_too_large"
BODY_TIMEOUT = "body_timeout"

# Codes that OpenAI's clients and their users know; every other reason is sent in lower case.
_CODES = {
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.UNAUTHENTICATED: "invalid_api_key",
    Reason.INVALID_ARGUMENT: "invalid_value",
}

# OpenAI's clients ask again at these statuses unless they are told not to: work given up would come back at once.
_RETRIED_BY_CLIENTS = frozenset({408, 409, 429, *range(500, 600)})

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


def error_object(error: PacelineError) -> dict[str, Any]:
    """The value of `error`. `param` is the field at fault, where one is known; `attainable_ms`, with an objective
    out of reach, the budget that could have been met."""
    param = error.metadata.get("field")
    if param is None and error.reason is Reason.UNKNOWN_MODEL:
        param = "model"
    status = error.http_status
    attainable = error.metadata.get(ATTAINABLE_MS)
    return {
        "message": error.message,
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": param,
        "code": error.metadata.get("code") or _CODES.get(error.reason, error.reason.value.lower()),
        **({} if attainable is None else {ATTAINABLE_MS: float(attainable)}),
    }


def error_body(error: PacelineError) -> bytes:
    """The error as a JSON body."""
    return json.dumps({"error": error_object(error)}, ensure_ascii=False).encode()


def error_response(error: PacelineError, *, request_id: str = "") -> Response:
    """The error as an HTTP response; refusals that may succeed later carry `Retry-After`."""
    status = error.http_status
    headers = http_headers(error)
    if status in (429, 503) and not headers and error.retryable:
        error.retry_after_ms = _DEFAULT_RETRY_MS
        headers = http_headers(error)
    if not error.retryable and status in _RETRIED_BY_CLIENTS:
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.metadata.get("code") in (BODY_TOO_LARGE, BODY_TIMEOUT):
        # Part of the body may be unread, so the connection is of no further use.
        headers["Connection"] = "close"
    if request_id:
        headers["x-request-id"] = request_id
    return Response(error_body(error), status_code=status, headers=headers, media_type="application/json")


def coded(message: str, *, param: str | None, code: str) -> PacelineError:
    """A 400 with one of OpenAI's own codes."""
    metadata = {"code": code}
    if param is not None:
        metadata["field"] = param
    return PacelineError(Reason.INVALID_ARGUMENT, message, metadata=metadata)


def unsupported(param: str, message: str) -> PacelineError:
    """A 400 about a feature that Paceline does not have."""
    return coded(message, param=param, code="unsupported_parameter")
