"""Questions of one turn of the event loop, asked in one call."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

Send = Callable[[Sequence[Q]], Awaitable[Sequence[A] | None]]
"""Asks a batch: the answers in order, or None when there are none. Never raises."""


class MicroBatch(Generic[Q, A]):
    """Whoever asks in the same turn joins the batch; nobody waits for others to come."""

    def __init__(self, send: "Send[Q, A]", max_batch: int) -> None:
        self._send = send
        self._max_batch = max_batch
        self._queue: list[tuple[Q, asyncio.Future[A | None]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, question: Q) -> A | None:
        """The answer; None when the call failed or its answers do not fit the questions."""
        answer: asyncio.Future[A | None] = asyncio.get_running_loop().create_future()
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._flush)
        self._queue.append((question, answer))
        return await answer

    async def close(self) -> None:
        """Cancel what is being asked."""
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    def _flush(self) -> None:
        queue, self._queue = self._queue, []
        for start in range(0, len(queue), self._max_batch):
            task = asyncio.create_task(self._call(queue[start : start + self._max_batch]))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _call(self, batch: list[tuple[Q, asyncio.Future[A | None]]]) -> None:
        answers: Sequence[A] | None = None
        try:
            answers = await self._send([question for question, _ in batch])
        finally:
            fit = answers is not None and len(answers) == len(batch)
            for place, (_, answer) in enumerate(batch):
                if not answer.done():
                    answer.set_result(answers[place] if fit and answers is not None else None)
