"""Wires one executor: engine, service, server. The only place that knows all of them."""

import asyncio
import logging
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from paceline.executor.v1 import executor_pb2_grpc
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_executor.contract import Engine, PrefixReuse
from paceline_executor.control import Control
from paceline_executor.landing import Landing
from paceline_executor.meter import Meter
from paceline_executor.pull import StatePuller
from paceline_executor.remote.build import build_remote
from paceline_executor.service import ExecutorService, new_identity
from paceline_executor.simulated.config import SimulatedConfig
from paceline_executor.simulated.driver import LoopDriver
from paceline_executor.simulated.engine import SimulatedEngine
from paceline_executor.trtllm.arguments import EngineSizes
from paceline_executor.trtllm.build import build_emulated, build_real
from paceline_executor.trtllm.vocabulary import load_vocabulary
from paceline_runtime.config_model import ConfigError
from paceline_runtime.server import Server
from paceline_runtime.telemetry.setup import Telemetry
from paceline_runtime.telemetry.spans import OpenSpans

_log = logging.getLogger(__name__)
DEFAULT_MODEL = "smollm2-135m-instruct"
TINY_MODEL = "tiny"
_ALIVE_INTERVAL_S = 0.25


class ExecutorApp:
    """One executor: `async with ExecutorApp(config) as app: app.address`. Hundreds of simulated ones fit a process."""

    def __init__(self, config: ExecutorServiceConfig, telemetry: Telemetry | None = None) -> None:
        self._config = config
        self._telemetry = telemetry
        self._stack = AsyncExitStack()
        self.identity = new_identity(config.executor.engine_id)
        """Who this engine is in this life."""
        self.engine: Engine
        """Set once entered."""
        self.server: Server
        """Set once entered."""

    @property
    def counters(self) -> Counter[str]:
        """What happened so far beside the engine: stalls, pulls, replays instead of pulls by reason."""
        return self._service.counters + self._landing.counters

    @property
    def address(self) -> str:
        """Where the service listens."""
        return self.server.address

    async def until_dead(self) -> None:
        """Return when the engine has failed for good. Readiness is gone by then."""
        while self.engine.alive:  # noqa: ASYNC110  # the engine's thread knows no loop that it could tell
            await asyncio.sleep(_ALIVE_INTERVAL_S)
        await self.server.health.set_ready(False)

    async def __aenter__(self) -> Self:
        config, own = self._config, self._config.executor
        async with AsyncExitStack() as stack:
            self.engine = await build_engine(own)
            stack.push_async_callback(asyncio.to_thread, self.engine.close)
            control = Control(self.engine, orphan_ttl_s=own.orphan_ttl_s)
            stack.callback(control.close)
            puller = StatePuller(
                self.engine.capabilities, config=own.channel, tls=config.tls, timeout_s=own.pull_timeout_s
            )
            self._landing = landing = Landing(self.engine, puller.pull, max_pulls=own.max_pulls)
            stack.push_async_callback(landing.close)
            self.server = Server(
                own.server.model_copy(update={"listen": own.listen}),
                tls=config.tls,
                auth=config.auth,
                telemetry=self._telemetry,
            )
            self._service = service = ExecutorService(
                self.engine,
                self.identity,
                control,
                landing,
                lambda: own.advertise or self.server.address,
                attach_timeout_s=own.attach_timeout_s,
                stall_pause_s=own.stall_pause_s,
                meter=self._meter(),
                spans=OpenSpans(
                    "paceline.engine", None if self._telemetry is None else self._telemetry.tracer
                ),
            )
            self.server.add(executor_pb2_grpc.add_ExecutorServiceServicer_to_server, service)
            self.server.on_drain(lambda: self._drain(control))
            await stack.enter_async_context(self.server)
            await self.server.health.set_ready(True)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def _meter(self) -> Meter | None:
        if self._telemetry is None:
            return None
        return Meter(self._telemetry.instruments, self.engine, self._config.executor.engine_id)

    async def _drain(self, control: Control) -> None:
        """Let live attempts end while their scheduler is there to hear of it, then end its stream."""
        if control.held:
            grace_s = self._config.executor.server.drain_grace_s * 0.8
            completed, cancelled = await asyncio.to_thread(self.engine.drain, grace_s)
            _log.info("engine drained", extra={"completed": completed, "cancelled": cancelled})
        control.close()


async def build_engine(config: ExecutorConfig) -> Engine:
    """The engine of a configuration. Loading a model takes a while and happens off the loop.

    Raises ConfigError for settings that contradict each other or an unknown profile.
    """
    try:
        if config.backend == "simulated":
            return SimulatedEngine(_simulated(config), LoopDriver())
        if config.backend == "trtllm":
            return await _trtllm(config)
        if config.backend == "remote":
            return await build_remote(config.remote, config.model_path, config.model, _sizes(config))
        return await asyncio.to_thread(_llamacpp, config)
    except ValueError as error:
        raise ConfigError([f"executor: {error}"]) from error


def _simulated(config: ExecutorConfig) -> SimulatedConfig:
    section = config.simulated
    return SimulatedConfig(
        model_name=config.model or "simulated",
        profile=section.profile,
        seed=section.seed,
        time_scale=section.time_scale,
        speed_factor=config.speed_factor,
        max_batch=config.max_batch,
        max_resident=max(config.max_resident, config.max_batch),
        context_tokens=config.context_tokens,
        kv_capacity_tokens=section.kv_capacity_tokens,
        chunk_tokens=config.prefill_chunk_tokens,
        prefill_budget_tokens=section.prefill_budget_tokens,
        output_median_tokens=section.output_median_tokens,
        output_sigma=section.output_sigma,
        fault_abort_marker=config.fault_abort_marker or None,
    )


async def _trtllm(config: ExecutorConfig) -> Engine:
    section = config.trtllm
    if section.emulated:
        words = load_vocabulary(config.model_path) if config.model_path else None
        return build_emulated(section, config.model, _sizes(config), words=words)[0]
    return await build_real(section, config.model_path, config.model, _sizes(config))


def _sizes(config: ExecutorConfig) -> EngineSizes:
    return EngineSizes(config.max_batch, max(config.max_resident, config.max_batch), config.context_tokens)


def _llamacpp(config: ExecutorConfig) -> Engine:
    # Only here: the library aborts a process that cannot hold it, and simulated fleets do not need it.
    from paceline_executor.llamacpp.config import LlamaCppConfig
    from paceline_executor.llamacpp.engine import LlamaCppEngine
    from paceline_executor.llamacpp.model_fetch import fetch_model
    from paceline_executor.llamacpp.tiny import write_tiny_model

    with tempfile.TemporaryDirectory(prefix="paceline-tiny-") as folder:
        if config.model_path == TINY_MODEL:
            path, name = write_tiny_model(Path(folder) / "tiny.gguf"), config.model or TINY_MODEL
        elif config.model_path:
            path, name = Path(config.model_path), config.model
        else:
            path, name = fetch_model(_log.info), config.model or DEFAULT_MODEL
        return LlamaCppEngine(
            LlamaCppConfig(
                model_path=path,
                model_name=name,
                max_batch=config.max_batch,
                max_resident=max(config.max_resident, config.max_batch),
                context_tokens=config.context_tokens,
                chunk_tokens=config.prefill_chunk_tokens,
                threads=config.threads,
                prefix_reuse=PrefixReuse(config.prefix_reuse),
                speed_factor=config.speed_factor,
                fault_abort_marker=config.fault_abort_marker or None,
            )
        )
