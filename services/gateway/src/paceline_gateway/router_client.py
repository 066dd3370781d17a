"""The calls the gateway makes to the router."""

import asyncio

import grpc

from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline_runtime.status import from_rpc_error

SessionCall = grpc.aio.StreamStreamCall[router_pb2.SessionRequest, router_pb2.SessionResponse]

_UNARY_TIMEOUT_S = 5.0


class RouterClient:
    """Typed calls on one channel. Failures of unary calls are raised as PacelineError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = router_pb2_grpc.RouterServiceStub(channel)

    async def open_session(self, timeout_s: float) -> SessionCall:
        """Start a session once the router answers. Raises TimeoutError when it does not in time."""
        async with asyncio.timeout(timeout_s):
            await self._channel.channel_ready()
        call: SessionCall = self._stub.Session()
        return call

    async def list_engines(self) -> router_pb2.ListEnginesResponse:
        """The fleet."""
        try:
            return await self._stub.ListEngines(router_pb2.ListEnginesRequest(), timeout=_UNARY_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def list_live(self, tenant: str, limit: int) -> router_pb2.ListRequestsResponse:
        """Live requests of a tenant (empty: of all), newest first."""
        request = router_pb2.ListRequestsRequest(limit=limit, tenant=tenant, live_only=True)
        try:
            return await self._stub.ListRequests(request, timeout=_UNARY_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def get_request(self, request_id: str) -> router_pb2.RequestRecord:
        """What the router knows of a request."""
        request = router_pb2.GetRequestRequest(request_id=request_id)
        try:
            return (await self._stub.GetRequest(request, timeout=_UNARY_TIMEOUT_S)).request
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
