"""What every RPC passes through on the server: request context, error mapping, deadline, drain."""

import asyncio
import logging
from typing import Any

import grpc

from paceline_runtime import rpc_context
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.interceptor import Call, RpcInfo, ServicerContext
from paceline_runtime.status import details_of, message_of, trailing_metadata

log = logging.getLogger(__name__)

HEALTH_SERVICE = "grpc.health.v1.Health"


async def request_context(info: RpcInfo, context: ServicerContext, call: Call) -> Any:
    """Bind the caller's request id, or a new one, to the task of the call."""
    request_id = info.text(rpc_context.REQUEST_ID_KEY) or rpc_context.new_request_id()
    with rpc_context.bound(request_id=request_id):
        return await call()


async def map_errors(info: RpcInfo, context: ServicerContext, call: Call) -> Any:
    """Turn exceptions into a status, in one place. Unexpected ones become INTERNAL with an id that the log has too."""
    try:
        return await call()
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except PacelineError as error:
        failure = error
    except grpc.RpcError as error:
        # A call further down the line failed. What a Paceline service said about it holds for this caller too.
        log.warning("rpc failed in a call down the line", extra=_where(info), exc_info=True)
        failure = details_of(error) or PacelineError(
            Reason.UNAVAILABLE, f"a service that {info.service} needs failed: {_brief(error)}"
        )
    except Exception:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The caller has left; what a handler stumbles over while it is torn down is not an error of its own.
            log.debug("rpc ended after its caller left", extra=_where(info), exc_info=True)
            raise
        error_id = rpc_context.new_request_id()[:12]
        log.exception("unexpected error in rpc", extra={**_where(info), "error_id": error_id})
        failure = PacelineError(
            Reason.INTERNAL,
            f"internal error {error_id}; the service log has it",
            metadata={"error_id": error_id},
        )
    await context.abort(failure.code, message_of(failure), trailing_metadata(failure))


class UnaryDeadline:
    """Bounds calls without streams, also those whose caller set no deadline, but for methods that bound
    themselves."""

    def __init__(self, limit_s: float, unbounded: frozenset[str] = frozenset()) -> None:
        self._limit_s = limit_s
        self._unbounded = unbounded

    async def __call__(self, info: RpcInfo, context: ServicerContext, call: Call) -> Any:
        """Run the call for at most the limit."""
        if info.streaming or info.method in self._unbounded:
            return await call()
        limit = asyncio.timeout(self._limit_s)
        try:
            async with limit:
                return await call()
        except TimeoutError:
            if not limit.expired():
                raise
            raise PacelineError(
                Reason.DEADLINE_EXCEEDED, f"{info.method} took longer than {self._limit_s:g} s"
            ) from None


class InFlight:
    """Counts running RPCs (health checks apart), and refuses new ones while draining."""

    def __init__(self) -> None:
        self._count = 0
        self._refusing = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def count(self) -> int:
        """RPCs running now."""
        return self._count

    def refuse(self) -> None:
        """Answer DRAINING to every new RPC from now on."""
        self._refusing = True

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until none is running; False when the time was over first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def __call__(self, info: RpcInfo, context: ServicerContext, call: Call) -> Any:
        """Count the call while it runs."""
        if info.service == HEALTH_SERVICE:
            return await call()
        if self._refusing:
            raise PacelineError(
                Reason.DRAINING, "this server is shutting down; use another one or try again shortly"
            )
        self._count += 1
        self._idle.clear()
        try:
            return await call()
        finally:
            self._count -= 1
            if self._count == 0:
                self._idle.set()


def budget_ms(context: ServicerContext) -> float | None:
    """Milliseconds left until the caller's deadline; None when the caller set none."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else max(0.0, remaining * 1000)


def _where(info: RpcInfo) -> dict[str, str]:
    return {"rpc_service": info.service, "rpc_method": info.method}


def _brief(error: grpc.RpcError) -> str:
    code = error.code()
    return getattr(code, "name", "unknown")
