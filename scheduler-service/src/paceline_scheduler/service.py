"""SchedulerService: the RPCs, on top of the loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from paceline_runtime.errors import PacelineError, Reason, invalid
from paceline_scheduler.explain import Explainer
from paceline_scheduler.loop import SchedulerLoop
from paceline_scheduler.session import RouterSession

_DEFAULT_LIMIT = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """One engine's scheduler, served."""

    def __init__(self, loop: SchedulerLoop) -> None:
        self._loop = loop
        self._explainer = Explainer(loop.state, loop.planner)

    async def Session(  # type: ignore[override]  # a writer instead of a generator: nothing runs per message
        self, request_iterator: AsyncIterator[scheduler_pb2.SessionRequest], context: Context
    ) -> None:
        """The stream of one router: a Hello, then commands down and updates up."""
        session = self._loop.open_session(await self._hello(request_iterator))
        reader = asyncio.create_task(self._read(session, request_iterator), name="router-commands")
        writer = asyncio.create_task(session.write_all(context.write), name="router-updates")
        try:
            await asyncio.wait((reader, writer, session.closed), return_when=asyncio.FIRST_COMPLETED)
            if session.closed.done():
                raise session.closed.result()
            for task in (reader, writer):
                if task.done():
                    task.result()
        finally:
            self._loop.close_session(session)
            for task in (reader, writer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                    await task

    async def GetLoad(
        self, request: scheduler_pb2.GetLoadRequest, context: Context
    ) -> scheduler_pb2.GetLoadResponse:
        """Load of the engine now."""
        return scheduler_pb2.GetLoadResponse(load=self._loop.loads.load())

    async def GetPlan(
        self, request: scheduler_pb2.GetPlanRequest, context: Context
    ) -> scheduler_pb2.GetPlanResponse:
        """The plan in force and why."""
        return self._explainer.plan()

    async def ListRequests(
        self, request: scheduler_pb2.ListRequestsRequest, context: Context
    ) -> scheduler_pb2.ListRequestsResponse:
        """The live table."""
        return self._explainer.requests(request.limit or _DEFAULT_LIMIT)

    async def Drain(
        self, request: scheduler_pb2.DrainRequest, context: Context
    ) -> scheduler_pb2.DrainResponse:
        """Stops taking requests."""
        return scheduler_pb2.DrainResponse(live=await self._loop.drain(request.timeout_ms / 1000))

    async def ExplainRequest(
        self, request: scheduler_pb2.ExplainRequestRequest, context: Context
    ) -> scheduler_pb2.ExplainRequestResponse:
        """Why a request runs or waits."""
        return self._explainer.explain(request.request_id)

    async def _hello(self, requests: AsyncIterator[scheduler_pb2.SessionRequest]) -> scheduler_pb2.Hello:
        try:
            async with asyncio.timeout(self._loop.state.config.attach_timeout_s):
                first = await anext(requests)
        except TimeoutError:
            raise PacelineError(Reason.DEADLINE_EXCEEDED, "no hello came") from None
        except StopAsyncIteration:
            raise invalid("a session begins with a hello") from None
        if first.WhichOneof("message") != "hello":
            raise invalid("a session begins with a hello")
        return first.hello

    async def _read(
        self, session: RouterSession, requests: AsyncIterator[scheduler_pb2.SessionRequest]
    ) -> None:
        async for message in requests:
            if message.WhichOneof("message") != "commands":
                raise invalid("a session has one hello; what follows are commands")
            self._loop.commands(session, message.commands)
