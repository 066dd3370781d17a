"""RouterService and FleetService: the API of the router, each RPC handed to the part that knows."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_router.admission import Admission
from paceline_router.decisions import Decisions
from paceline_router.dispatch import Dispatcher
from paceline_router.fleet_control import FleetControl
from paceline_router.lifecycle import Lifecycle
from paceline_router.move import Way
from paceline_router.mover import Mover
from paceline_router.queries import Queries
from paceline_router.readers import Readers
from paceline_router.records import move_record
from paceline_router.route_stream import RouteStreams
from paceline_router.sessions import ClientSession
from paceline_router.single_stream import SingleStreams
from paceline_router.tasks import TaskBook
from paceline_router.validation import check_name, check_task
from paceline_runtime.errors import PacelineError, Reason, invalid
from paceline_runtime.rpc_context import tenant


class RouterService(router_pb2_grpc.RouterServiceServicer):
    """Where back ends and the gateway hand in requests. The tenant of a call is that of its credentials."""

    def __init__(
        self,
        admission: Admission,
        readers: Readers,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        queries: Queries,
        tasks: TaskBook,
        fleet_control: FleetControl,
        decisions: Decisions,
        route_streams: RouteStreams,
        mover: Mover,
        *,
        cancel_timeout_s: float,
    ) -> None:
        self._admission = admission
        self._readers = readers
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._queries = queries
        self._tasks = tasks
        self._fleet_control = fleet_control
        self._decisions = decisions
        self._route_streams = route_streams
        self._mover = mover
        self._single = SingleStreams(admission, readers)
        self._cancel_timeout_s = cancel_timeout_s

    def _scope(self) -> str:
        """The tenant whose requests the present caller may see; empty: all."""
        return self._admission.scope_of(tenant())

    async def Session(
        self, request_iterator: AsyncIterator[router_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[router_pb2.SessionResponse]:
        """Many requests on one stream."""
        session = ClientSession(self._admission, self._readers, self._dispatcher, self._lifecycle, tenant())
        async with aclosing(session.serve(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def Generate(
        self, request: router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        """One request, streamed."""
        async with aclosing(self._single.generate(request.spec, tenant())) as events:
            async for event in events:
                if isinstance(event, generation_pb2.Tokens):
                    yield router_pb2.GenerateResponse(tokens=event)
                elif isinstance(event, generation_pb2.Accepted):
                    yield router_pb2.GenerateResponse(accepted=event)
                else:
                    yield router_pb2.GenerateResponse(finished=event)

    async def Attach(
        self, request: router_pb2.AttachRequest, context: Any
    ) -> AsyncIterator[router_pb2.AttachResponse]:
        """Goes on with a request from a token index."""
        async with aclosing(
            self._single.attach(request.request_id, request.from_index, self._scope())
        ) as events:
            async for event in events:
                if isinstance(event, generation_pb2.Tokens):
                    yield router_pb2.AttachResponse(tokens=event)
                elif isinstance(event, generation_pb2.Accepted):
                    yield router_pb2.AttachResponse(accepted=event)
                else:
                    yield router_pb2.AttachResponse(finished=event)

    async def Cancel(self, request: router_pb2.CancelRequest, context: Any) -> router_pb2.CancelResponse:
        """Ends a request; returns when its engine has confirmed. Of an ended one: its state."""
        live = await self._readers.find(request.request_id, self._scope())
        self._lifecycle.cancel(live, "by its client")
        if not await live.wait_ended(self._cancel_timeout_s):
            message = (
                f"its engine has not confirmed within {self._cancel_timeout_s:g} s; it will end when it does"
            )
            raise PacelineError(Reason.DEADLINE_EXCEEDED, message)
        return router_pb2.CancelResponse(state=int(live.state))  # type: ignore[arg-type]

    async def GetRequest(
        self, request: router_pb2.GetRequestRequest, context: Any
    ) -> router_pb2.GetRequestResponse:
        """One request: live or from the store."""
        return router_pb2.GetRequestResponse(
            request=await self._queries.get(request.request_id, self._scope())
        )

    async def ListRequests(
        self, request: router_pb2.ListRequestsRequest, context: Any
    ) -> router_pb2.ListRequestsResponse:
        """Requests: live and from the store."""
        return await self._queries.page(request, self._scope())

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        """A decision only."""
        return router_pb2.RouteResponse(decision=await self._decisions.route(request.spec, tenant()))

    async def RouteStream(
        self, request_iterator: AsyncIterator[router_pb2.RouteStreamRequest], context: Any
    ) -> AsyncIterator[router_pb2.RouteStreamResponse]:
        """Decisions in batches, and their outcomes."""
        async with aclosing(self._route_streams.serve(request_iterator, tenant())) as responses:
            async for response in responses:
                yield response

    async def BeginTask(
        self, request: router_pb2.BeginTaskRequest, context: Any
    ) -> router_pb2.BeginTaskResponse:
        """Begins a task."""
        check_task(request.task_id)
        check_name("app", request.app)
        task = self._tasks.begin(request.task_id, request.e2e_ms, request.app, tenant())
        return router_pb2.BeginTaskResponse(task_id=task.task_id, e2e_ms=task.e2e_ms)

    async def EndTask(self, request: router_pb2.EndTaskRequest, context: Any) -> router_pb2.EndTaskResponse:
        """Ends a task; a cancelled one takes its live calls with it."""
        task, end = self._tasks.end(request.task_id, self._scope(), cancelled=request.cancelled)
        if request.cancelled:
            for call in list(task.live):
                self._lifecycle.cancel(call, "its task was cancelled")
        return router_pb2.EndTaskResponse(attained=end.attained, calls=end.calls, elapsed_ms=end.elapsed_ms)

    async def ListEngines(
        self, request: router_pb2.ListEnginesRequest, context: Any
    ) -> router_pb2.ListEnginesResponse:
        """The fleet."""
        return self._fleet_control.list_engines()

    async def DrainEngine(
        self, request: router_pb2.DrainEngineRequest, context: Any
    ) -> router_pb2.DrainEngineResponse:
        """Takes an engine out of placement, or back in."""
        self._admission.check_operator(tenant())
        return await self._fleet_control.drain(request)

    async def MoveRequest(
        self, request: router_pb2.MoveRequestRequest, context: Any
    ) -> router_pb2.MoveRequestResponse:
        """Moves a live request; returns when the other engine has taken over."""
        self._admission.check_operator(tenant())
        if request.way not in (0, *Way):
            raise invalid(f"way {request.way} is not known", field="way")
        live = await self._readers.find(request.request_id, self._scope())
        move = await self._mover.move(live, request.engine_id, Way(request.way) if request.way else None)
        return move_record(move)

    async def ExplainRequest(
        self, request: router_pb2.ExplainRequestRequest, context: Any
    ) -> router_pb2.ExplainRequestResponse:
        """Why a request went where it went."""
        return await self._queries.explain(request.request_id, self._scope())


class FleetService(router_pb2_grpc.FleetServiceServicer):
    """How engines join the fleet."""

    def __init__(self, admission: Admission, fleet_control: FleetControl) -> None:
        self._admission = admission
        self._fleet_control = fleet_control

    async def Announce(
        self, request: router_pb2.AnnounceRequest, context: Any
    ) -> router_pb2.AnnounceResponse:
        """A new scheduler asks to be dialled."""
        self._admission.check_operator(tenant())
        return self._fleet_control.announce(request)
