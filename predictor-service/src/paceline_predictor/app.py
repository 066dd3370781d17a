"""Builds the predictor: the only file that knows all its parts."""

import asyncio
import gc
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from paceline.predictor.v1 import predictor_pb2_grpc
from paceline_core.calibration.online import CalibrationParams
from paceline_predictor.batching import Batcher
from paceline_predictor.config import Config
from paceline_predictor.keeping import Keeper
from paceline_predictor.learning import Learner
from paceline_predictor.length_file import LengthFile
from paceline_predictor.length_model import FileLengths
from paceline_predictor.monitoring import Monitor
from paceline_predictor.service import PredictorService
from paceline_predictor.state_home import FileHome, NoHome, StateHome, StoreHome
from paceline_predictor.state_parts import LENGTHS
from paceline_predictor.tasks.desk import TASKS, TaskDesk
from paceline_runtime.server import Server
from paceline_runtime.service import Process
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.names import DEGRADED, PREDICTIONS_INVALID
from paceline_runtime.telemetry.setup import Telemetry


class PredictorApp:
    """A running predictor: `async with PredictorApp(config) as app: app.address`."""

    def __init__(self, config: Config, *, telemetry: Telemetry | None = None) -> None:
        own = config.predictor
        telemetry = telemetry or Telemetry(TelemetryConfig(), "predictor")
        self.length_file = LengthFile(own.length_model, max_bytes=own.max_model_bytes)
        model = FileLengths(
            self.length_file,
            CalibrationParams(histogram=own.histogram.params()),
            count_invalid=lambda kind, rows: telemetry.instruments.add(PREDICTIONS_INVALID, rows, kind=kind),
        )
        self.tasks = TaskDesk(own.task_model, own.task_patterns.params(), max_bytes=own.max_model_bytes)
        self._batcher = Batcher(
            model,
            max_batch=own.max_batch,
            max_waiting=own.max_waiting,
        )
        self.keeper = Keeper(
            {LENGTHS: model, TASKS: self.tasks.model},
            _state_home(config),
            interval_s=own.state_interval_s,
            timeout_s=own.state_timeout_s,
        )
        self._monitor = Monitor(model, telemetry.instruments)
        telemetry.instruments.observe(DEGRADED, self._degraded)
        self.server = Server(
            own.server.model_copy(update={"listen": own.listen}),
            tls=config.tls,
            auth=config.auth,
            telemetry=telemetry,
        )
        self.server.add(
            predictor_pb2_grpc.add_PredictorServiceServicer_to_server,
            PredictorService(
                model,
                self.length_file,
                self._batcher,
                Learner(model, self.keeper),
                self.tasks,
                self.keeper,
                telemetry.instruments,
            ),
        )
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where the service listens, with the real port."""
        return self.server.address

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            async with asyncio.TaskGroup() as loading:
                loading.create_task(self.length_file.load(), name="length-model")
                loading.create_task(self.tasks.load(), name="task-model")
            await stack.enter_async_context(self.keeper)
            await stack.enter_async_context(self._batcher)
            await stack.enter_async_context(self._monitor)
            await stack.enter_async_context(self.server)
            await self.server.health.set_ready(True)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def _degraded(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        warnings = {
            "learned_state": self.keeper.warning,
            "length_model": self._monitor.warning,
            "task_model": self.tasks.warning,
        }
        return [(1.0 if warning else 0.0, {"reason": reason}) for reason, warning in warnings.items()]


async def run(config: Config, process: Process) -> None:
    """Serve until the process is told to end, then drain and save."""
    async with PredictorApp(config, telemetry=process.telemetry):
        # What is there now stays: without this the collector goes through all of it now and then, and answers wait.
        gc.collect()
        gc.freeze()
        await process.shutdown.wait()


def _state_home(config: Config) -> StateHome:
    if config.predictor.state_path:
        return FileHome(Path(config.predictor.state_path))
    if config.store.url:
        return StoreHome(config.store.url, config.predictor.state_name)
    return NoHome()
