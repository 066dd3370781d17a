"""Asks routers to dial this scheduler, while none has."""

import asyncio
import logging

import grpc

from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.status import from_rpc_error
from paceline_runtime.tls import TlsConfig
from paceline_scheduler.loop import SchedulerLoop

log = logging.getLogger(__name__)

_FIRST_INTERVAL_S = 1.0
_CALL_TIMEOUT_S = 5.0


async def announce(
    target: str, endpoint: str, loop: SchedulerLoop, config: ChannelConfig, tls: TlsConfig
) -> None:
    """Announce `endpoint` to the router at `target` again and again while no session is open; until cancelled."""
    interval_s = _FIRST_INTERVAL_S
    async with channel(target, config, tls=tls) as router:
        stub = router_pb2_grpc.FleetServiceStub(router)
        while True:
            identity = loop.state.engine.identity
            if identity is not None and not len(loop.state.sessions):
                request = router_pb2.AnnounceRequest(
                    scheduler_endpoint=endpoint, engine_id=identity.engine_id
                )
                try:
                    answer = await stub.Announce(request, timeout=_CALL_TIMEOUT_S)
                    interval_s = max(answer.interval_ms / 1000, 0.1)
                except grpc.aio.AioRpcError as error:
                    log.info(
                        "announcing failed", extra={"router": target, "cause": str(from_rpc_error(error))}
                    )
            await asyncio.sleep(interval_s)
