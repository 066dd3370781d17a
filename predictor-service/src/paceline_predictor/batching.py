"""Questions of concurrent calls, gathered into batches for one model."""

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from paceline_core.lengths import K
from paceline_predictor.model import LengthAnswers, LengthModel, LengthQuestion
from paceline_runtime.errors import PacelineError, Reason

_Waiting = tuple[Sequence[LengthQuestion], "asyncio.Future[LengthAnswers]"]


class Batcher:
    """While the model works on one batch, the questions that come form the next one.

    Use as `async with Batcher(model) as batcher`.
    """

    def __init__(self, model: LengthModel, *, max_batch: int = 1024, max_waiting: int = 8192) -> None:
        self._model = model
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._calls: deque[_Waiting] = deque()
        self._questions = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="length-batches")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(self._calls, PacelineError(Reason.DRAINING, "the predictor is shutting down"))

    async def predict(self, questions: Sequence[LengthQuestion]) -> LengthAnswers:
        """Answers to one call's questions. Raises QUEUE_FULL when too many wait already."""
        if not questions:
            return LengthAnswers(np.empty((0, K)), (), ())
        if self._questions + len(questions) > self._max_waiting:
            raise PacelineError(Reason.QUEUE_FULL, "too many questions are waiting", retry_after_ms=100)
        future: asyncio.Future[LengthAnswers] = asyncio.get_running_loop().create_future()
        self._calls.append((questions, future))
        self._questions += len(questions)
        self._wake.set()
        return await future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._calls:
                await self._answer(self._take())
                await asyncio.sleep(0)

    def _take(self) -> list[_Waiting]:
        """The calls of the next batch: whole ones, at least one, gone ones left out."""
        batch: list[_Waiting] = []
        size = 0
        while self._calls and (not batch or size + len(self._calls[0][0]) <= self._max_batch):
            questions, future = self._calls.popleft()
            self._questions -= len(questions)
            if not future.done():
                batch.append((questions, future))
                size += len(questions)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        questions = [question for asked, _ in batch for question in asked]
        try:
            if self._model.off_loop:
                answers = await asyncio.to_thread(self._model.predict, questions)
            else:
                answers = self._model.predict(questions)
        except asyncio.CancelledError:
            self._fail(batch, PacelineError(Reason.DRAINING, "the predictor is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to the callers of this batch
            self._fail(batch, error)
            return
        at = 0
        for asked, future in batch:
            rows = slice(at, at + len(asked))
            at += len(asked)
            if not future.done():
                future.set_result(
                    LengthAnswers(
                        answers.probabilities[rows], answers.sources[rows], answers.coverage_p90[rows]
                    )
                )

    def _fail(self, calls: Sequence[_Waiting] | deque[_Waiting], error: Exception) -> None:
        for _, future in calls:
            if not future.done():
                future.set_exception(error)
