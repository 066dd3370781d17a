"""Wires the router: the only place that builds concrete objects."""

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

import grpc

from paceline.predictor.v1 import predictor_pb2_grpc
from paceline.router.v1 import router_pb2_grpc
from paceline.scheduler.v1 import scheduler_pb2
from paceline_router.admission import Admission
from paceline_router.adoption import Adoption
from paceline_router.clock import SystemClock
from paceline_router.config import Config
from paceline_router.decisions import Decisions
from paceline_router.dispatch import Dispatcher
from paceline_router.durability import Durability
from paceline_router.fallback_lengths import FallbackHistograms
from paceline_router.fleet import Fleet
from paceline_router.fleet_control import FleetControl
from paceline_router.forecast_link import ForecastLink
from paceline_router.intake import Intake
from paceline_router.lease import RouterLease
from paceline_router.ledger import Ledger, Retention, duplicate
from paceline_router.lifecycle import Lifecycle
from paceline_router.mover import Mover
from paceline_router.observation import Gauges, RequestSpans
from paceline_router.open_decisions import OpenDecisions
from paceline_router.placement import Placer
from paceline_router.predictor_link import PredictorLink
from paceline_router.prompt_size import PromptSizes
from paceline_router.queries import Queries
from paceline_router.readers import Readers
from paceline_router.rectifier import Rectifier
from paceline_router.repredict import Repredictor
from paceline_router.request import LiveRequest
from paceline_router.route_stream import RouteStreams
from paceline_router.scheduler_link import LinkSettings, SchedulerLink
from paceline_router.service import FleetService, RouterService
from paceline_router.sweeper import Sweeper
from paceline_router.task_plan import TaskPlanner
from paceline_router.tasks import TaskBook
from paceline_router.token_intake import TokenIntake
from paceline_runtime.channel import channel
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import PacelineError
from paceline_runtime.server import Server
from paceline_runtime.shutdown import Shutdown
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_store.database import Database
from paceline_store.errors import StoreUnavailable
from paceline_store.retention import keep_for
from paceline_store.store import Store
from paceline_store.write_behind import WriteBehind

log = logging.getLogger(__name__)


class RouterApp:
    """A whole router in this process: `async with RouterApp(config) as app: app.address`.

    `shutdown` is asked for the end when a newer life of this router takes over.
    """

    def __init__(
        self, config: Config, *, telemetry: Telemetry | None = None, shutdown: Shutdown | None = None
    ) -> None:
        self._config = config
        self._telemetry = telemetry or Telemetry(TelemetryConfig(), "router")
        self.shutdown = shutdown or Shutdown()
        self._exits = contextlib.AsyncExitStack()
        self._background: list[asyncio.Task[None]] = []
        self.server: Server
        self.ledger: Ledger
        self.fleet: Fleet
        self.dispatcher: Dispatcher
        self.mover: Mover
        self.readers: Readers
        self.tokens: TokenIntake
        self.fleet_control: FleetControl
        self.open_decisions: OpenDecisions
        self.route_streams: RouteStreams
        self.durability: Durability
        self.adoption: Adoption

    @property
    def address(self) -> str:
        """Where the router listens."""
        return self.server.address

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _start(self) -> None:
        config, clock = self._config.router, SystemClock()
        instruments = self._telemetry.instruments
        store = await self._open_store()
        holder = f"{socket.gethostname()}:{os.getpid()}"
        lease = RouterLease(store, config.router_id, holder, self._config.store.lease_ttl_s, clock)
        await lease.acquire()
        self._exits.push_async_callback(lease.release)
        writer = await self._open_writer(store, lease)

        self.fleet = Fleet(config.leave_out_after_ms)
        retention = Retention(config.retain_requests, config.retain_bytes, config.retain_s)
        self.ledger = Ledger(config.max_live_requests, retention, config.retry_after_ms)
        self.durability = Durability(
            writer, config.router_id, clock, config.checkpoint_interval_ms, config.sync_timeout_s
        )
        self._exits.push_async_callback(self.durability.close)
        try:
            placer = Placer(self.fleet, config.placement, config.placement_params, instruments, clock)
        except ValueError as error:
            raise ConfigError([f"router.placement: {error}"]) from None
        self.dispatcher = Dispatcher(
            self.ledger, self.fleet, placer, self.durability, clock, config.window_tokens
        )
        predictor, forecasts = self._predictor_links(clock)
        self._exits.push_async_callback(predictor.close)
        self._exits.push_async_callback(forecasts.close)
        sizes = PromptSizes()
        tasks = TaskBook(
            self.durability,
            config.router_id,
            clock,
            default_e2e_ms=config.slo.task_e2e_ms,
            idle_ttl_s=config.task_idle_ttl_s,
            max_tasks=config.max_tasks,
        )
        tasks.on_outcome = predictor.observe_task
        task_plan = TaskPlanner(tasks, forecasts, clock)
        self._exits.push_async_callback(task_plan.close)
        self.mover = mover = Mover(
            config.rectify,
            self.ledger,
            self.fleet,
            self.dispatcher,
            self.durability,
            instruments,
            clock,
        )
        lifecycle = Lifecycle(
            self.ledger,
            self.fleet,
            self.dispatcher,
            mover,
            self.durability,
            predictor,
            tasks,
            sizes,
            instruments,
            clock,
            max_attempts=config.max_attempts,
            isolate_tokens=config.isolate_tokens,
        )
        self.durability.on_sync_failed = lifecycle.fail
        self.adoption = Adoption(
            self.ledger,
            self.fleet,
            self.dispatcher,
            self.durability,
            instruments,
            clock,
            grace_s=config.scheduler_grace_s,
            default_max_wait_ms=config.max_wait_ms,
        )
        self.readers = Readers(
            self.ledger,
            self.dispatcher,
            lifecycle,
            self.adoption,
            store,
            clock,
            detach_ttl_s=config.detach_ttl_s,
            coalesce_ms=config.coalesce_ms,
        )

        def adopted(request: LiveRequest) -> None:
            tasks.rejoin(request)
            self.readers.leave(request)

        self.adoption.on_adopted = adopted
        self.adoption.on_conflict = lambda request: lifecycle.refuse(request, duplicate(request.request_id))
        self.tokens = TokenIntake(self.ledger, self.durability, clock)
        intake = Intake(
            self.ledger,
            self.fleet,
            self.dispatcher,
            lifecycle,
            mover,
            self.tokens,
            self.adoption,
            self.durability,
            clock,
        )
        settings = LinkSettings(
            config.redial_min_ms / 1000, config.redial_max_ms / 1000, config.heartbeat_lost_s
        )
        incarnation = random.SystemRandom().getrandbits(63)

        def hello() -> scheduler_pb2.Hello:
            return scheduler_pb2.Hello(
                router_id=config.router_id, router_incarnation=incarnation, fencing_token=lease.fencing_token
            )

        def make_link(endpoint: str) -> SchedulerLink:
            return SchedulerLink(endpoint, self._dial, hello, intake, settings, clock)

        self.fleet_control = FleetControl(config, self.fleet, self.dispatcher, lifecycle, make_link, clock)
        admission = Admission(
            config,
            self.ledger,
            self.fleet,
            self.dispatcher,
            lifecycle,
            self.durability,
            predictor,
            tasks,
            task_plan,
            sizes,
            store,
            clock,
        )
        queries = Queries(self.ledger, self.adoption, store, clock)
        decisions = Decisions(admission, self.fleet, placer, predictor)
        self.open_decisions = OpenDecisions(
            self.fleet,
            self.ledger,
            predictor,
            instruments,
            clock,
            most=config.max_open_decisions,
            ttl_s=config.open_decision_ttl_s,
            retry_after_ms=config.retry_after_ms,
        )
        self.fleet.on_new_life = self.open_decisions.engine_restarted
        self.route_streams = RouteStreams(decisions, self.open_decisions, placer, clock)
        sweeper = Sweeper(
            self.ledger,
            self.dispatcher,
            lifecycle,
            self.readers,
            tasks,
            self.fleet_control,
            mover,
            self.open_decisions,
            clock,
        )
        sweeper.on_fenced = lambda: self.shutdown.request("a newer life of this router is at work")
        service = RouterService(
            admission,
            self.readers,
            self.dispatcher,
            lifecycle,
            queries,
            tasks,
            self.fleet_control,
            decisions,
            self.route_streams,
            mover,
            cancel_timeout_s=config.cancel_timeout_s,
        )

        spans = RequestSpans(self._telemetry.tracer)
        admission.on_begin, lifecycle.on_end = spans.begin, spans.end
        gauges = Gauges(
            instruments,
            self.ledger,
            self.fleet,
            self.tokens,
            self.durability,
            predictor,
            clock,
            config.leave_out_after_ms,
        )

        repredictor = Repredictor(self.ledger, predictor, instruments, clock, config.repredict_every_tokens)
        repredictor.on_revised = self.fleet.revised
        rectifier = Rectifier(config.rectify, placer, self.ledger, self.fleet, mover, clock)
        if rectifier.on:
            intake.on_risks = rectifier.risks

        await _restore_tasks(store, config.router_id, tasks)
        await self.adoption.load(store, config.router_id)
        self._exits.push_async_callback(self.fleet_control.close)
        for endpoint in config.schedulers:
            self.fleet_control.dial(endpoint)
        self._run(sweeper.run(), "sweeper")
        self._run(gauges.run(), "gauges")
        self._run(self.durability.run(), "checkpoints")
        self._run(predictor.run(), "outcomes")
        self._run(repredictor.run(), "repredictions")
        self._run(rectifier.run(), "moves")
        if placer.pricer is not None:
            self._run(placer.pricer.run(), "prices")
        self._run(self.fleet_control.run_dns(), "dns")
        self._run(self.adoption.run(self.fleet_control.answered), "adoption")
        if store is not None:
            self._run(keep_for(store, self._config.store.keep_ended_s), "retention")
        self._run(lease.keep(lambda: self.shutdown.request("a newer life of this router took over")), "lease")
        self._exits.push_async_callback(self._stop_background)

        self.server = Server(
            config.server.model_copy(update={"listen": config.listen}),
            tls=self._config.tls,
            auth=self._config.auth,
            telemetry=self._telemetry,
            unbounded=frozenset({"DrainEngine"}),
        )
        self.server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, service)
        self.server.add(
            router_pb2_grpc.add_FleetServiceServicer_to_server, FleetService(admission, self.fleet_control)
        )
        self.server.on_drain(self._send_clients_away)
        await self._exits.enter_async_context(self.server)
        await self.server.health.set_ready(True)

    def _dial(self, endpoint: str) -> grpc.aio.Channel:
        return channel(endpoint, self._config.router.channel, tls=self._config.tls)

    def _predictor_links(self, clock: SystemClock) -> tuple[PredictorLink, ForecastLink]:
        config = self._config.router
        stub = None
        if config.predictor:
            predictor_channel = self._dial(config.predictor)
            self._exits.push_async_callback(predictor_channel.close)
            stub = predictor_pb2_grpc.PredictorServiceStub(predictor_channel)
        instruments, timeout_ms = self._telemetry.instruments, config.predictor_timeout_ms
        return (
            PredictorLink(stub, FallbackHistograms(), instruments, clock, timeout_ms),
            ForecastLink(stub, instruments, clock, timeout_ms),
        )

    async def _open_store(self) -> Store | None:
        """The store. One that is down at the start is no reason not to serve: writes are kept until
        it is back."""
        url = self._config.store.url
        if not url:
            return None
        try:
            store = await Store.open(url)
        except ValueError as error:
            raise ConfigError([f"store.url: {error}"]) from None
        except StoreUnavailable as error:
            log.error(
                "the store is down: serving without it until it is back", extra={"reason": error.message}
            )
            store = Store(Database(url), prepared=False)
        self._exits.push_async_callback(store.close)
        return store

    async def _open_writer(self, store: Store | None, lease: RouterLease) -> WriteBehind | None:
        if store is None:
            return None
        config = self._config.store
        writer = WriteBehind(
            store,
            max_buffer_bytes=config.max_buffer_bytes,
            flush_interval_ms=config.flush_interval_ms,
            max_batch=config.max_batch,
            close_timeout_s=config.close_timeout_s,
            lease=lease.lease,
            instruments=self._telemetry.instruments,
        )
        await self._exits.enter_async_context(writer)
        return writer

    def _run(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.ensure_future(self._guarded(work, name))
        self._background.append(task)

    async def _guarded(self, work: Coroutine[None, None, None], name: str) -> None:
        """A background task that fails ends the router: half a router is worse than none."""
        try:
            await work
        except Exception as error:
            log.exception("background task failed", extra={"task": name})
            self.shutdown.request(f"{name} failed: {error}")

    async def _send_clients_away(self) -> None:
        """Let what is about to end do so, then end the client streams: their requests live on in the
        schedulers."""
        self.route_streams.leave()
        grace_s = self._config.router.server.drain_grace_s / 2
        try:
            async with asyncio.timeout(grace_s):
                await self.ledger.empty.wait()
        except TimeoutError:
            log.info("leaving live requests to the next life", extra={"requests": self.ledger.live_count})
        self.readers.send_away()

    async def _stop_background(self) -> None:
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)


async def _restore_tasks(store: Store | None, router_id: str, tasks: TaskBook) -> None:
    """Open the tasks of this router's last life again. A store that is down leaves them closed."""
    if store is None:
        return
    try:
        for stored in await store.open_tasks(router_id):
            tasks.restore(stored)
    except PacelineError as error:
        log.warning("open tasks cannot be read from the store", extra={"reason": error.message})
