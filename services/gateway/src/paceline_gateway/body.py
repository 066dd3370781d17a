"""Reads a request body up to a limit, and parses it."""

import asyncio
from typing import Any

import pydantic_core
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from paceline_gateway.openai_errors import BODY_TIMEOUT, BODY_TOO_LARGE, coded
from paceline_runtime.errors import PacelineError, Reason

# Parsing takes about 5 ms per megabyte; beyond this it leaves the event loop.
_INLINE_PARSE_BYTES = 256 * 1024
# What is read and thrown away of a body that is too large, so that the client gets to read the answer.
_DISCARD_FACTOR = 4


async def read_json(request: Request, *, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """The body as a JSON object. Raises PacelineError (400, 413) and ClientDisconnect."""
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, max_bytes)
    except TimeoutError:
        raise coded(
            f"the request body did not arrive within {timeout_s:g} s", param=None, code=BODY_TIMEOUT
        ) from None
    try:
        if len(body) > _INLINE_PARSE_BYTES:
            value = await asyncio.to_thread(_parse, body)
        else:
            value = _parse(body)
    except ValueError as error:
        raise coded(f"the body is not valid JSON: {error}", param=None, code="invalid_json") from None
    if not isinstance(value, dict):
        raise coded("the body must be a JSON object", param=None, code="invalid_json")
    return value


def _parse(body: bytearray) -> Any:
    return pydantic_core.from_json(body, allow_inf_nan=False)


async def _read(request: Request, max_bytes: int) -> bytearray:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _discard(request.receive, max_bytes * _DISCARD_FACTOR)
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            if more:
                await _discard(request.receive, max_bytes * _DISCARD_FACTOR)
            raise _too_large(max_bytes)
        if not more:
            return body


async def _discard(receive: Receive, limit_bytes: int) -> None:
    while limit_bytes > 0:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if not message.get("more_body", False):
            return
        limit_bytes -= len(message.get("body", b""))


def _too_large(max_bytes: int) -> PacelineError:
    return PacelineError(
        Reason.MESSAGE_TOO_LARGE,
        f"the request body is larger than {max_bytes:,} bytes",
        metadata={"code": BODY_TOO_LARGE},
    )
