"""The headers of Paceline's own that say how a request is served."""

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from paceline.router.v1 import generation_pb2 as pb
from paceline_runtime import rpc_context
from paceline_runtime.errors import invalid

REQUEST_ID = "x-request-id"
APP = "x-paceline-app"
DURABILITY = "x-paceline-durability"
PRIORITY = "x-paceline-priority"
ON_DISCONNECT = "x-paceline-on-disconnect"
MAX_WAIT = "x-paceline-max-wait-ms"

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_DURABILITY = {
    "none": pb.DURABILITY_NONE,
    "async": pb.DURABILITY_ASYNC,
    "sync": pb.DURABILITY_SYNC,
}
_MAX_WAIT_MS = 24 * 3600 * 1000.0


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """What they said, or the defaults.

    `chosen_id`: the client chose `request_id`. `finish_without_client`: a request whose client leaves runs to its end.
    """

    request_id: str
    chosen_id: bool
    app: str = ""
    durability: "pb.Durability.ValueType" = pb.DURABILITY_UNSPECIFIED
    priority: int = 0
    max_wait_ms: float = 0.0
    finish_without_client: bool = False


def read_headers(headers: Headers) -> RequestHeaders:
    """Read them. Raises PacelineError naming the header."""
    chosen = headers.get(REQUEST_ID)
    if chosen is not None and not _ID.fullmatch(chosen):
        raise invalid(f"{REQUEST_ID} must be 1 to 128 characters of A-Z a-z 0-9 _ . : -", field=REQUEST_ID)
    return RequestHeaders(
        request_id=chosen or rpc_context.new_request_id(),
        chosen_id=chosen is not None,
        app=_app(headers),
        durability=_durability(headers),
        priority=_priority(headers),
        max_wait_ms=_max_wait_ms(headers),
        finish_without_client=_finish_without_client(headers),
    )


def _app(headers: Headers) -> str:
    app = headers.get(APP, "")
    if len(app) > 64:
        raise invalid(f"{APP} must be at most 64 characters", field=APP)
    return app


def _durability(headers: Headers) -> "pb.Durability.ValueType":
    value = headers.get(DURABILITY)
    if value is None:
        return pb.DURABILITY_UNSPECIFIED
    if value.lower() not in _DURABILITY:
        raise invalid(f"{DURABILITY} must be none, async or sync, got {value[:80]!r}", field=DURABILITY)
    return _DURABILITY[value.lower()]


def _priority(headers: Headers) -> int:
    value = headers.get(PRIORITY, "0")
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", value) or not -100 <= int(value) <= 100:
        raise invalid(
            f"{PRIORITY} must be a whole number from -100 to 100, got {value[:80]!r}", field=PRIORITY
        )
    return int(value)


def _max_wait_ms(headers: Headers) -> float:
    value = headers.get(MAX_WAIT)
    if value is None:
        return 0.0
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value) or not 0 < float(value) <= _MAX_WAIT_MS:
        raise invalid(
            f"{MAX_WAIT} must be a number of milliseconds greater than 0, got {value[:80]!r}", field=MAX_WAIT
        )
    return float(value)


def _finish_without_client(headers: Headers) -> bool:
    value = headers.get(ON_DISCONNECT, "cancel").lower()
    if value not in ("cancel", "detach"):
        raise invalid(f"{ON_DISCONNECT} must be cancel or detach, got {value[:80]!r}", field=ON_DISCONNECT)
    return value == "detach"
