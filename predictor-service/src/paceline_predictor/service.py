"""PredictorService: answers about lengths, and learning from outcomes."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import islice

from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline_predictor import wire
from paceline_predictor.batching import Batcher
from paceline_predictor.keeping import Keeper
from paceline_predictor.learning import Learner
from paceline_predictor.length_file import LengthFile
from paceline_predictor.model import LengthModel
from paceline_predictor.onnx_file import ModelFileError
from paceline_predictor.tasks import wire as task_wire
from paceline_predictor.tasks.desk import TaskDesk
from paceline_runtime.errors import PacelineError, Reason, invalid
from paceline_runtime.interceptor import ServicerContext
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import (
    MODEL_RELOADS,
    OBSERVATIONS,
    PREDICTION_DURATION,
    PREDICTIONS,
    TASK_FORECASTS,
)

_ESTIMATES_A_TURN = 128
_OUTCOMES_A_TURN = 64
"""An estimate takes some 0.01 ms, an outcome 0.05 ms to read: other calls get their turn in between."""


class PredictorService(predictor_pb2_grpc.PredictorServiceServicer):
    """The RPCs. Knows no deadlines and no engines."""

    def __init__(
        self,
        model: LengthModel,
        file: LengthFile,
        batcher: Batcher,
        learner: Learner,
        tasks: TaskDesk,
        keeper: Keeper,
        instruments: Instruments,
    ) -> None:
        self._model = model
        self._file = file
        self._batcher = batcher
        self._learner = learner
        self._tasks = tasks
        self._keeper = keeper
        self._instruments = instruments

    async def PredictLength(
        self, request: predictor_pb2.PredictLengthRequest, context: ServicerContext
    ) -> predictor_pb2.PredictLengthResponse:
        """Length distributions, conditioned on what is out and clipped at max_tokens."""
        began = time.perf_counter()
        asked = wire.questions(request)
        answers = await self._batcher.predict(asked)
        response = predictor_pb2.PredictLengthResponse()
        estimates = wire.estimates(asked, answers)
        while part := list(islice(estimates, _ESTIMATES_A_TURN)):
            response.estimates.extend(part)
            if len(part) == _ESTIMATES_A_TURN:
                await asyncio.sleep(0)
        for source, count in Counter(answers.sources).items():
            self._instruments.add(PREDICTIONS, count, source=source)
        self._instruments.record(PREDICTION_DURATION, time.perf_counter() - began)
        return response

    async def ForecastTask(
        self, request: predictor_pb2.ForecastTaskRequest, context: ServicerContext
    ) -> predictor_pb2.ForecastTaskResponse:
        """What tasks still need. Raises UNAVAILABLE without a task model: an invented forecast would be believed."""
        graphs = await asyncio.to_thread(task_wire.graphs, request)
        try:
            forecasts = await self._tasks.forecast(graphs)
        except ModelFileError as error:
            raise PacelineError(Reason.INTERNAL, f"the task model fails: {error}") from None
        for source, count in Counter(forecast.source for forecast in forecasts).items():
            self._instruments.add(TASK_FORECASTS, count, source=source)
        return task_wire.forecasts(forecasts)

    async def Observe(
        self, request_iterator: AsyncIterator[predictor_pb2.ObserveRequest], context: ServicerContext
    ) -> predictor_pb2.ObserveResponse:
        """Learns from lengths and ended tasks as they come, so a broken stream loses nothing of what arrived.

        Malformed outcomes are counted as rejected. Those that hold nothing to learn are in neither count: so are tasks
        that did not run to their end.
        """
        accepted = rejected = 0
        async for request in request_iterator:
            if len(request.lengths) > wire.MAX_OUTCOMES:
                raise invalid(f"at most {wire.MAX_OUTCOMES} outcomes a message", field="lengths")
            outcomes = []
            for number, message in enumerate(request.lengths, start=1):
                if number % _OUTCOMES_A_TURN == 0:
                    await asyncio.sleep(0)
                outcome = wire.outcome(message)
                if outcome is None:
                    rejected += 1
                else:
                    outcomes.append(outcome)
            learned = await self._learner.learn(outcomes)
            if request.tasks:
                ended = await asyncio.to_thread(task_wire.outcomes, request)
                rejected += len(request.tasks) - len(ended)
                learned += await self._tasks.learn(ended, self._keeper.learned)
            accepted += learned
            self._instruments.add(OBSERVATIONS, learned)
        return predictor_pb2.ObserveResponse(accepted=accepted, rejected=rejected)

    async def GetModelInfo(
        self, request: predictor_pb2.GetModelInfoRequest, context: ServicerContext
    ) -> predictor_pb2.GetModelInfoResponse:
        """The model in use, with anything to worry about."""
        return predictor_pb2.GetModelInfoResponse(models=self._infos())

    async def ReloadModels(
        self, request: predictor_pb2.ReloadModelsRequest, context: ServicerContext
    ) -> predictor_pb2.ReloadModelsResponse:
        """Takes each model file as it is now, and keeps what was learned, unless the saved state is asked for, too.

        Calls in progress are answered by the one or the other. Raises FAILED_PRECONDITION when a file cannot be used,
        and what `Keeper.reload` raises; that model, and the state in use, stay.
        """
        problems = []
        for name, reload in (("length_model", self._file.reload), ("task_model", self._tasks.reload)):
            try:
                await reload()
            except ModelFileError as error:
                self._instruments.add(MODEL_RELOADS, outcome="refused")
                problems.append(f"{name}: {error}; the one in use stays")
            else:
                self._instruments.add(MODEL_RELOADS, outcome="loaded")
        if problems:
            raise PacelineError(Reason.FAILED_PRECONDITION, "; ".join(problems))
        if request.saved_state:
            await self._keeper.reload()
        return predictor_pb2.ReloadModelsResponse(models=self._infos())

    def _infos(self) -> list[predictor_pb2.ModelInfo]:
        return [
            wire.model_info(self._model.report(), self._keeper.warning),
            task_wire.model_info(self._tasks.report(), self._tasks.warning),
        ]
