"""Builds the scheduler from its parts and runs them: the only place that knows all of them."""

import asyncio
import logging
from types import TracebackType
from typing import Self

from paceline.executor.v1 import executor_pb2
from paceline.scheduler.v1 import scheduler_pb2_grpc
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.registry import make_policy
from paceline_runtime.auth import AuthConfig
from paceline_runtime.channel import channel
from paceline_runtime.config_model import ConfigError
from paceline_runtime.server import Server
from paceline_runtime.service import Process
from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.tls import TlsConfig
from paceline_scheduler.announce import announce
from paceline_scheduler.config import LIVE_POLICIES, SchedulerConfig, SchedulerServiceConfig
from paceline_scheduler.executor_link import ExecutorLink
from paceline_scheduler.loop import SchedulerLoop
from paceline_scheduler.service import SchedulerService

log = logging.getLogger(__name__)


class SchedulerApp:
    """One scheduler, served. `async with SchedulerApp(config) as app: app.address`. Many may live in one process."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        tls: TlsConfig | None = None,
        auth: AuthConfig | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Raises ConfigError when the policy or its parameters are unknown."""
        self._config = config
        self._tls = tls or TlsConfig()
        self._auth = auth
        self._telemetry = telemetry
        try:
            self._policy = make_policy(config.policy, config.policy_params)
        except ValueError as error:
            raise ConfigError([f"scheduler.policy: {error}"]) from None
        if self._policy.estimates is EstimateUse.TRUE:
            problem = f"{config.policy!r} plans by true lengths, which only the simulator knows"
            raise ConfigError([f"scheduler.policy: {problem}; choose from {', '.join(LIVE_POLICIES)}"])
        self._tasks: list[asyncio.Task[None]] = []
        self.link: ExecutorLink
        """Its stream to the executor, once started."""
        self.loop: SchedulerLoop
        """The scheduler itself, once started."""
        self.server: Server
        """Its gRPC server, once started."""

    @property
    def address(self) -> str:
        """Where the service listens, with the real port."""
        return self.server.address

    @property
    def running(self) -> bool:
        """True between start and stop."""
        return bool(self._tasks)

    async def start(self) -> None:
        """Listen, and dial the executor. Ready once the engine is there."""
        config = self._config
        instruments = None if self._telemetry is None else self._telemetry.instruments
        tracer = None if self._telemetry is None else self._telemetry.tracer
        self.loop = SchedulerLoop(config, self._policy, instruments, tracer)
        self.server = Server(
            config.server.model_copy(update={"listen": config.listen}),
            tls=self._tls,
            auth=self._auth,
            telemetry=self._telemetry,
        )
        self.server.add(
            scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, SchedulerService(self.loop)
        )
        self.server.on_drain(self._end_sessions)
        await self.server.start()
        self.link = ExecutorLink(
            lambda: channel(config.executor, config.channel, tls=self._tls),
            executor_pb2.Attach(scheduler_id=config.scheduler_id, fencing_token=self.loop.started_unix_ms),
            self.loop.state.outbox,
            self.loop,
            lost_after_s=config.engine_lost_after_s,
            attach_timeout_s=config.attach_timeout_s,
            redial_min_s=config.redial_min_s,
            redial_max_s=config.redial_max_s,
        )
        self._spawn("executor-link", self.link.run())
        self._spawn("timer", self.loop.run_timer())
        self._spawn("readiness", self._follow_engine())
        for target in config.announce:
            endpoint = config.advertise or self.address
            self._spawn(
                f"announce {target}", announce(target, endpoint, self.loop, config.channel, self._tls)
            )

    async def stop(self, grace_s: float | None = None) -> None:
        """Drain the server and end all tasks. Attempts stay in the executor for the next scheduler."""
        await self.server.drain(grace_s)
        self.loop.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._tasks.clear()

    async def wait(self) -> None:
        """Return when a part of it failed, with its error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(0.0)

    def _spawn(self, name: str, work: "asyncio._CoroutineLike[None]") -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _follow_engine(self) -> None:
        """Ready while the engine is there."""
        while True:
            engine = self.loop.state.engine
            await self.server.health.set_ready(engine.attached and not engine.lost)
            self.loop.on_engine_change.clear()
            await self.loop.on_engine_change.wait()

    async def _end_sessions(self) -> None:
        self.loop.close()


async def serve(config: SchedulerServiceConfig, process: Process) -> None:
    """Run one scheduler until the process is asked to end."""
    app = SchedulerApp(config.scheduler, tls=config.tls, auth=config.auth, telemetry=process.telemetry)
    await app.start()
    ended = asyncio.create_task(process.shutdown.wait(), name="shutdown")
    failed = asyncio.create_task(app.wait(), name="parts")
    try:
        await asyncio.wait((ended, failed), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        for task in (ended, failed):
            task.cancel()
        await app.stop()
