"""Length estimates: from the predictor, in micro-batches, or from the router's own quantiles when it does not
answer."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

import grpc

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline_router.clock import Clock
from paceline_router.estimate import Estimate
from paceline_router.request import LiveRequest
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import PREDICTIONS

log = logging.getLogger(__name__)

MAX_BATCH: Final = 256
_PART_BYTES: Final = 2048
MAX_OUTCOMES: Final = 10_000
OBSERVE_INTERVAL_S: Final = 1.0
REST_MS: Final = 1000.0
"""After a failure the predictor is left alone for this long, so that not every request waits for its time-
out."""


def length_query(request: LiveRequest) -> predictor_pb2.LengthQuery:
    """What the predictor is asked about a request at its arrival, and learns from at its end."""
    spec, text = request.spec, request.text
    return predictor_pb2.LengthQuery(
        model=spec.model,
        app=spec.app,
        tenant=request.tenant,
        prompt_head=text[:_PART_BYTES].decode(errors="ignore"),
        prompt_tail=text[-_PART_BYTES:].decode(errors="ignore") if len(text) > _PART_BYTES else "",
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        temperature=spec.sampling.temperature,
        turn_index=max(request.turn_index, 0),
        has_tools=spec.has_tools,
        wants_json=spec.wants_json,
    )


class FallbackLengths(Protocol):
    """What the router knows of lengths by itself."""

    def estimate(self, model: str, app: str) -> estimate_pb2.LengthEstimate:
        """An estimate with source "fallback"."""
        ...

    def learn(self, model: str, app: str, output_tokens: int, censored: bool) -> None:
        """A request ended after so many tokens; censored: it was cut there."""
        ...


class PredictorLink:
    """Asks the predictor and tells it outcomes. With no stub the fallback answers everything."""

    def __init__(
        self,
        stub: predictor_pb2_grpc.PredictorServiceStub | None,
        fallback: FallbackLengths,
        instruments: Instruments,
        clock: Clock,
        timeout_ms: float,
    ) -> None:
        self._stub = stub
        self._fallback = fallback
        self._instruments = instruments
        self._clock = clock
        self._timeout_s = timeout_ms / 1000
        self._rest_until_ms = 0.0
        self._queue: list[
            tuple[predictor_pb2.LengthQuery, asyncio.Future[estimate_pb2.LengthEstimate | None]]
        ] = []
        self._batches: set[asyncio.Task[None]] = set()
        self._outcomes: deque[predictor_pb2.LengthOutcome] = deque()
        self.outcomes_dropped = 0

    @property
    def degraded(self) -> bool:
        """True while the predictor is configured and does not answer."""
        return self._stub is not None and self._clock.now_ms() < self._rest_until_ms

    @property
    def answers(self) -> bool:
        """True if there is a predictor, and it answered of late."""
        return self._stub is not None and not self.degraded

    async def estimate(self, query: predictor_pb2.LengthQuery) -> Estimate:
        """A length estimate; never fails, never takes longer than the time-out."""
        message: estimate_pb2.LengthEstimate | None = None
        if self.answers:
            message = await self._ask(query)
        if message is not None:
            try:
                estimate = Estimate.of(message, query.max_tokens)
            except ValueError:
                log.warning(
                    "the predictor sent a malformed estimate", extra={"version": message.model_version}
                )
            else:
                self._instruments.add(PREDICTIONS, source=message.source)
                return estimate
        self._instruments.add(PREDICTIONS, source="fallback")
        return self.own(query)

    def own(self, query: predictor_pb2.LengthQuery, source: str = "fallback") -> Estimate:
        """What the router knows by itself, at once. `source` says why it was asked."""
        message = self._fallback.estimate(query.model, query.app)
        message.source = source
        return Estimate.of(message, query.max_tokens)

    def observe(self, outcome: predictor_pb2.LengthOutcome) -> None:
        """A request ended; the fallback learns at once, the predictor in the next batch."""
        if outcome.censored and not outcome.output_tokens:
            return  # cut before its first token: says nothing about lengths
        query = outcome.query
        self._fallback.learn(query.model, query.app, outcome.output_tokens, outcome.censored)
        if self._stub is None:
            return
        if len(self._outcomes) >= MAX_OUTCOMES:
            self.outcomes_dropped += 1
            return
        self._outcomes.append(outcome)

    async def run(self) -> None:
        """Send outcomes until cancelled."""
        while self._stub is not None:
            await asyncio.sleep(OBSERVE_INTERVAL_S)
            if self._outcomes and not self.degraded:
                await self._send_outcomes(self._stub)

    async def close(self) -> None:
        """Cancel what is being asked."""
        for task in self._batches:
            task.cancel()
        if self._batches:
            await asyncio.wait(self._batches)

    async def _ask(self, query: predictor_pb2.LengthQuery) -> estimate_pb2.LengthEstimate | None:
        answer: asyncio.Future[estimate_pb2.LengthEstimate | None] = (
            asyncio.get_running_loop().create_future()
        )
        if not self._queue:
            # Whoever else asks in this turn of the loop joins the batch.
            asyncio.get_running_loop().call_soon(self._send_batches)
        self._queue.append((query, answer))
        return await answer

    def _send_batches(self) -> None:
        queue, self._queue = self._queue, []
        for start in range(0, len(queue), MAX_BATCH):
            task = asyncio.create_task(self._answer(queue[start : start + MAX_BATCH]))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _answer(
        self,
        batch: list[tuple[predictor_pb2.LengthQuery, asyncio.Future[estimate_pb2.LengthEstimate | None]]],
    ) -> None:
        estimates: list[estimate_pb2.LengthEstimate | None] = [None] * len(batch)
        assert self._stub is not None
        try:
            request = predictor_pb2.PredictLengthRequest(queries=[query for query, _ in batch])
            response = await self._stub.PredictLength(request, timeout=self._timeout_s)
            if len(response.estimates) == len(batch):
                estimates = list(response.estimates)
        except grpc.RpcError as error:
            self._rest(error)
        finally:
            for (_, answer), estimate in zip(batch, estimates, strict=True):
                if not answer.done():
                    answer.set_result(estimate)

    async def _send_outcomes(self, stub: predictor_pb2_grpc.PredictorServiceStub) -> None:
        batch = [self._outcomes.popleft() for _ in range(min(MAX_BATCH, len(self._outcomes)))]

        async def one() -> AsyncIterator[predictor_pb2.ObserveRequest]:
            yield predictor_pb2.ObserveRequest(lengths=batch)

        try:
            await stub.Observe(one(), timeout=2.0)
        except grpc.RpcError as error:
            self._rest(error)
            self.outcomes_dropped += len(batch)

    def _rest(self, error: grpc.RpcError) -> None:
        if not self.degraded:
            log.warning(
                "the predictor does not answer; own quantiles are used", extra={"cause": str(error.code())}
            )
        self._rest_until_ms = self._clock.now_ms() + REST_MS
