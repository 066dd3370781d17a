"""Forecasts of what a task still needs: from the predictor, or none."""

import logging
import math
from collections.abc import Sequence
from typing import Final

import grpc

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline_router.clock import Clock
from paceline_router.micro_batch import MicroBatch
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import TASK_FORECASTS

log = logging.getLogger(__name__)

MAX_BATCH: Final = 32
REST_MS: Final = 1000.0
UNSERVED_REST_MS: Final = 60_000.0
"""A predictor that does not serve forecasts is asked again after this long: it may have been replaced."""


class ForecastLink:
    """Asks for forecasts. It rests by itself: a failure here leaves length estimates alone."""

    def __init__(
        self,
        stub: predictor_pb2_grpc.PredictorServiceStub | None,
        instruments: Instruments,
        clock: Clock,
        timeout_ms: float,
    ) -> None:
        self._stub = stub
        self._instruments = instruments
        self._clock = clock
        self._timeout_s = timeout_ms / 1000
        self._rest_until_ms = 0.0
        self._questions: MicroBatch[predictor_pb2.TaskGraph, estimate_pb2.TaskForecast] = MicroBatch(
            self._ask, MAX_BATCH
        )

    @property
    def answers(self) -> bool:
        """True if there is a predictor, and no failure of late."""
        return self._stub is not None and self._clock.now_ms() >= self._rest_until_ms

    async def forecast(self, graph: predictor_pb2.TaskGraph) -> estimate_pb2.TaskForecast | None:
        """What the task still needs, its newest call included; never fails, never takes longer than the time-out."""
        if not self.answers:
            return None
        forecast = await self._questions.ask(graph)
        if forecast is None or not _usable(forecast):
            if forecast is not None:
                log.warning(
                    "the predictor sent a malformed forecast", extra={"version": forecast.model_version}
                )
            self._instruments.add(TASK_FORECASTS, source="none")
            return None
        self._instruments.add(TASK_FORECASTS, source=forecast.source)
        return forecast

    async def close(self) -> None:
        """Cancel what is being asked."""
        await self._questions.close()

    async def _ask(
        self, graphs: Sequence[predictor_pb2.TaskGraph]
    ) -> Sequence[estimate_pb2.TaskForecast] | None:
        assert self._stub is not None
        try:
            request = predictor_pb2.ForecastTaskRequest(tasks=graphs)
            response = await self._stub.ForecastTask(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            unserved = error.code() is grpc.StatusCode.UNIMPLEMENTED
            self._rest_until_ms = self._clock.now_ms() + (UNSERVED_REST_MS if unserved else REST_MS)
            log.info("no forecasts of tasks for a while", extra={"cause": str(error.code())})
            return None
        return response.forecasts


def described(forecast: estimate_pb2.TaskForecast) -> str:
    """A forecast in one line, for ExplainRequest."""
    words = f"{forecast.source}: {forecast.remaining_stages:.1f} stages, {forecast.remaining_calls:.1f} calls to come"
    path = ", ".join(
        f"P{100 * level:.0f} {tokens:.0f}"
        for level, tokens in zip(forecast.quantiles, forecast.critical_path_tokens, strict=True)
    )
    share = f"; this stage has {forecast.stage_shares[0]:.0%} of the work" if forecast.stage_shares else ""
    return words + (f"; tokens on the critical path {path}" if path else "") + share


def _usable(forecast: estimate_pb2.TaskForecast) -> bool:
    """True if its columns fit and every number is finite and not negative."""
    levels = len(forecast.quantiles)
    numbers = (
        forecast.remaining_stages,
        forecast.remaining_calls,
        *forecast.quantiles,
        *forecast.remaining_tokens,
        *forecast.critical_path_tokens,
        *forecast.stage_shares,
    )
    return len(forecast.remaining_tokens) == len(forecast.critical_path_tokens) == levels and all(
        math.isfinite(number) and number >= 0 for number in numbers
    )
