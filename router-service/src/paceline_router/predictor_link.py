"""Length estimates: from the predictor, in micro-batches, or from the router's own quantiles when it does not
answer. And what the predictor learns from."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

import grpc
import numpy as np

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline_core import lengths
from paceline_router.clock import Clock
from paceline_router.estimate import Estimate
from paceline_router.micro_batch import MicroBatch
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import OUTCOMES_DROPPED, PREDICTIONS

log = logging.getLogger(__name__)

MAX_BATCH: Final = 256
MAX_OUTCOMES: Final = 10_000
MAX_TASK_OUTCOMES: Final = 1_000
_TASKS_A_MESSAGE: Final = 32
OBSERVE_INTERVAL_S: Final = 1.0
REST_MS: Final = 1000.0
"""After a failure the predictor is left alone for this long, so that not every request waits for its time-
out."""
_REVISION_TIMEOUT_S: Final = 1.0
"""Nobody waits for a revision."""
_OBSERVE_TIMEOUT_S: Final = 10.0
"""Nobody waits for the predictor to learn either, and what it does not take in time is lost to it."""


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
        self._questions: MicroBatch[predictor_pb2.LengthQuery, estimate_pb2.LengthEstimate] = MicroBatch(
            self._ask, MAX_BATCH
        )
        self._outcomes: deque[predictor_pb2.LengthOutcome] = deque()
        self._tasks: deque[predictor_pb2.TaskOutcome] = deque()
        self.outcomes_dropped = 0

    @property
    def degraded(self) -> bool:
        """True while the predictor is configured and does not answer."""
        return self._stub is not None and self._clock.now_ms() < self._rest_until_ms

    @property
    def configured(self) -> bool:
        """True if there is a predictor at all."""
        return self._stub is not None

    @property
    def answers(self) -> bool:
        """True if there is a predictor, and it answered of late."""
        return self._stub is not None and not self.degraded

    async def estimate(self, query: predictor_pb2.LengthQuery) -> Estimate:
        """A length estimate; never fails, never takes longer than the time-out."""
        message: estimate_pb2.LengthEstimate | None = None
        if self.answers:
            message = await self._questions.ask(query)
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

    async def cdfs(self, queries: Sequence[predictor_pb2.LengthQuery]) -> list[lengths.FloatArray]:
        """Length distributions float64[K] for many questions, in order; never fails, one time-out for each `MAX_BATCH`
        of them."""
        found: list[lengths.FloatArray] = []
        for start in range(0, len(queries), MAX_BATCH):
            found += await self._cdfs(queries[start : start + MAX_BATCH])
        return found

    async def _cdfs(self, queries: Sequence[predictor_pb2.LengthQuery]) -> list[lengths.FloatArray]:
        messages: Sequence[estimate_pb2.LengthEstimate] | None = None
        if self.answers and len(queries) == 1:  # who asks alone may join others
            alone = await self._questions.ask(queries[0])
            messages = None if alone is None else [alone]
        elif self.answers:
            messages = await self._ask(queries)
        if messages is not None and len(messages) == len(queries):
            try:
                rows = np.array([message.probabilities for message in messages], dtype=np.float64)
                cdf = list(lengths.cdf_from_probabilities(rows))
            except ValueError:
                version = messages[0].model_version
                log.warning("the predictor sent a malformed estimate", extra={"version": version})
            else:
                for source, times in Counter(message.source for message in messages).items():
                    self._instruments.add(PREDICTIONS, times, source=source)
                return cdf
        self._instruments.add(PREDICTIONS, len(queries), source="fallback")
        own = {(query.model, query.app): query for query in queries}
        known = {names: self.own(query).cdf for names, query in own.items()}
        return [known[query.model, query.app] for query in queries]

    async def revise(
        self, queries: Sequence[predictor_pb2.LengthQuery]
    ) -> Sequence[estimate_pb2.LengthEstimate] | None:
        """Estimates for requests under way, in order; None when there are none to be had.

        A failure here does not rest the predictor: a slow large batch says nothing about single questions.
        """
        if self._stub is None or self.degraded:
            return None
        try:
            request = predictor_pb2.PredictLengthRequest(queries=queries)
            response = await self._stub.PredictLength(request, timeout=_REVISION_TIMEOUT_S)
        except grpc.RpcError as error:
            log.info("estimates were not revised", extra={"cause": str(error.code())})
            return None
        return response.estimates if len(response.estimates) == len(queries) else None

    def own(self, query: predictor_pb2.LengthQuery, source: str = "fallback") -> Estimate:
        """What the router knows by itself, at once. `source` says why it was asked."""
        message = self._fallback.estimate(query.model, query.app)
        message.source = source
        return Estimate.of(message, query.max_tokens)

    def observe(self, outcome: predictor_pb2.LengthOutcome) -> None:
        """A request ended; the fallback learns at once, the predictor in the next batch.

        Of an outcome at a checkpoint (`query.generated_tokens` set) the predictor alone learns.
        """
        if outcome.censored and not outcome.output_tokens:
            return  # cut before its first token: says nothing about lengths
        query = outcome.query
        if not query.generated_tokens:
            self._fallback.learn(query.model, query.app, outcome.output_tokens, outcome.censored)
        if self._stub is None:
            return
        if len(self._outcomes) >= MAX_OUTCOMES:
            self._dropped(1)
            return
        self._outcomes.append(outcome)

    def observe_task(self, outcome: predictor_pb2.TaskOutcome) -> None:
        """A task ended; the predictor hears of it in the next batch."""
        if self._stub is None:
            return
        if len(self._tasks) >= MAX_TASK_OUTCOMES:
            self._dropped(1)
            return
        self._tasks.append(outcome)

    async def run(self) -> None:
        """Send outcomes until cancelled."""
        while self._stub is not None:
            await asyncio.sleep(OBSERVE_INTERVAL_S)
            if (self._outcomes or self._tasks) and not self.degraded:
                await self._send_outcomes(self._stub)

    async def close(self) -> None:
        """Cancel what is being asked."""
        await self._questions.close()

    async def _ask(
        self, queries: Sequence[predictor_pb2.LengthQuery]
    ) -> Sequence[estimate_pb2.LengthEstimate] | None:
        assert self._stub is not None
        try:
            request = predictor_pb2.PredictLengthRequest(queries=queries)
            response = await self._stub.PredictLength(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            self._rest(error)
            return None
        return response.estimates

    async def _send_outcomes(self, stub: predictor_pb2_grpc.PredictorServiceStub) -> None:
        ended = [self._outcomes.popleft() for _ in range(min(MAX_BATCH, len(self._outcomes)))]
        tasks = [self._tasks.popleft() for _ in range(min(_TASKS_A_MESSAGE, len(self._tasks)))]

        async def one() -> AsyncIterator[predictor_pb2.ObserveRequest]:
            yield predictor_pb2.ObserveRequest(lengths=ended, tasks=tasks)

        try:
            await stub.Observe(one(), timeout=_OBSERVE_TIMEOUT_S)
        except grpc.RpcError as error:
            self._rest(error)
            self._dropped(len(ended) + len(tasks))

    def _dropped(self, outcomes: int) -> None:
        self.outcomes_dropped += outcomes
        self._instruments.add(OUTCOMES_DROPPED, outcomes)

    def _rest(self, error: grpc.RpcError) -> None:
        if not self.degraded:
            log.warning(
                "the predictor does not answer; own quantiles are used", extra={"cause": str(error.code())}
            )
        self._rest_until_ms = self._clock.now_ms() + REST_MS
