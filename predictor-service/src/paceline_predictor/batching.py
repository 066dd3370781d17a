"""Questions of concurrent calls, gathered into batches for one model."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from paceline_core.lengths import K
from paceline_predictor.model import LengthAnswers, LengthModel, LengthQuestion
from paceline_runtime.errors import PacelineError, Reason

_BATCH_CHARS = 65_536
"""A batch ends past so much text: reading it must not hold up the event loop for longer than a batch of short ones."""
_TURNS = 8
"""Turns of the event loop, some 0.01 ms each, that are waited for another call."""


@dataclass(slots=True)
class _Call:
    """A call that waits: its questions, how many were taken into batches, and the answers so far."""

    questions: Sequence[LengthQuestion]
    answered: "asyncio.Future[LengthAnswers]"
    taken: int = 0
    parts: list[LengthAnswers] = field(default_factory=list)


class Batcher:
    """While the model works on one batch, the questions that come form the next one.

    A batch of a few questions costs hardly more than one, but gRPC hands calls over one by one, even those that wait
    already: so the event loop gets a few turns before a batch begins, and more as long as they bring further calls. A
    batch is small, and a large call goes through several, taking turns with the others: nobody waits for a call of a
    thousand questions.
    Use as `async with Batcher(model) as batcher`.
    """

    def __init__(
        self,
        model: LengthModel,
        *,
        max_batch: int = 64,
        max_waiting: int = 8192,
        thread_from: int = 1 << 30,
    ) -> None:
        """`thread_from`: batches of so many questions have their bases computed in a thread."""
        self._model = model
        self._max_batch = max_batch
        self._turn_share = max(1, max_batch // 2)
        self._max_waiting = max_waiting
        self._thread_from = thread_from
        self._calls: deque[_Call] = deque()
        self._waiting = 0
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
        for call in self._calls:
            _fail(call, _draining())

    async def predict(self, questions: Sequence[LengthQuestion]) -> LengthAnswers:
        """Answers to one call's questions. Raises QUEUE_FULL when too many wait already."""
        if not questions:
            return LengthAnswers(np.empty((0, K)), (), (), ())
        if self._waiting + len(questions) > self._max_waiting:
            raise PacelineError(Reason.QUEUE_FULL, "too many questions are waiting", retry_after_ms=100)
        call = _Call(questions, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._waiting += len(questions)
        self._wake.set()
        return await call.answered

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._calls:
                await self._gather()
                await self._answer(self._take())

    async def _gather(self) -> None:
        """Let the calls in that are on their way."""
        turns = 0
        while turns < _TURNS and self._waiting < self._max_batch:
            before = self._waiting
            await asyncio.sleep(0)
            turns = 0 if self._waiting > before else turns + 1
        if turns == 0:  # a batch is full already: other tasks get their turn all the same
            await asyncio.sleep(0)

    def _take(self) -> list[tuple[_Call, slice]]:
        """The next batch: of each waiting call in turn a part; of calls that gave up nothing."""
        batch: list[tuple[_Call, slice]] = []
        room, chars = self._max_batch, _BATCH_CHARS
        unfinished: list[_Call] = []
        while self._calls and room > 0 and chars > 0:
            call = self._calls.popleft()
            left = len(call.questions) - call.taken
            if call.answered.done():
                self._waiting -= left
                continue
            most = min(left, room, self._turn_share if self._calls or batch else room)
            count = 0
            while count < most and chars > 0:
                chars -= call.questions[call.taken + count].chars
                count += 1
            batch.append((call, slice(call.taken, call.taken + count)))
            call.taken += count
            room -= count
            self._waiting -= count
            if count < left:
                unfinished.append(call)
        self._calls.extend(unfinished)
        return batch

    async def _answer(self, batch: Sequence[tuple[_Call, slice]]) -> None:
        if not batch:
            return
        questions = [question for call, rows in batch for question in call.questions[rows]]
        try:
            if len(questions) >= self._thread_from:
                bases = await asyncio.to_thread(self._model.bases, questions)
            else:
                bases = self._model.bases(questions)
            answers = self._model.answers(questions, bases)
        except asyncio.CancelledError:
            for call, _ in batch:
                _fail(call, _draining())
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to the callers of this batch
            for call, _ in batch:
                _fail(call, error)
            return
        at = 0
        for call, rows in batch:
            count = rows.stop - rows.start
            call.parts.append(_rows(answers, slice(at, at + count)))
            at += count
            if call.taken == len(call.questions) and not call.answered.done():
                call.answered.set_result(_joined(call.parts))


def _rows(answers: LengthAnswers, rows: slice) -> LengthAnswers:
    return LengthAnswers(
        answers.probabilities[rows], answers.sources[rows], answers.coverage_p90[rows], answers.versions[rows]
    )


def _joined(parts: Sequence[LengthAnswers]) -> LengthAnswers:
    if len(parts) == 1:
        return parts[0]
    return LengthAnswers(
        np.concatenate([part.probabilities for part in parts]),
        [source for part in parts for source in part.sources],
        [coverage for part in parts for coverage in part.coverage_p90],
        [version for part in parts for version in part.versions],
    )


def _draining() -> PacelineError:
    return PacelineError(Reason.DRAINING, "the predictor is shutting down")


def _fail(call: _Call, error: Exception) -> None:
    if not call.answered.done():
        call.answered.set_exception(error)
