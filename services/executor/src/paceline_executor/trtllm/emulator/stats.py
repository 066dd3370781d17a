"""Iteration statistics and KV events: queues that one reader drains, and iterators that end when nothing comes."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from paceline_executor.trtllm.emulator.scheduler import SchedulerOutput

if TYPE_CHECKING:
    from paceline_executor.trtllm.emulator.executor import PyExecutor

Row = dict[str, Any]


class StatsQueue:
    """Rows that nobody has read. Past its bound the oldest go, as nobody may be reading."""

    def __init__(self, capacity: int = 1000) -> None:
        self._rows: deque[Row] = deque(maxlen=capacity)
        self._arrived = asyncio.Event()
        self.closed = False

    def put(self, row: Row) -> None:
        """A new row."""
        self._rows.append(row)
        self._arrived.set()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        self._arrived.set()

    def take(self) -> Row | None:
        """The oldest row: gone for every other reader."""
        return self._rows.popleft() if self._rows else None

    async def wait(self, timeout_s: float) -> Row | None:
        """The oldest row, or None when none came in time."""
        row = self.take()
        if row is not None or self.closed:
            return row
        self._arrived.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return None
        return self.take()


class IterationResult:
    """Iterates over rows, and ends after `timeout` seconds without one."""

    def __init__(self, queue: StatsQueue, timeout: float) -> None:
        self._queue = queue
        self._timeout_s = timeout

    def __aiter__(self) -> "IterationResult":
        return self

    async def __anext__(self) -> Row:
        row = await self._queue.wait(self._timeout_s)
        if row is None:
            raise StopAsyncIteration
        return row


def stats_row(executor: "PyExecutor", batch: SchedulerOutput, latency_ms: float) -> Row:
    """The row of an iteration that is about to end, before its tokens count."""
    pool = executor.pool
    scheduled = {id(r) for r in (*batch.context_requests, *batch.generation_requests)}
    held = [r for r in executor.active_requests if id(r) not in scheduled and r.started]
    queued = [*executor.waiting, *(r for r in executor.active_requests if not r.started)]
    return {
        "iter": executor.iter_counter,
        "iterLatencyMS": latency_ms,
        "numActiveRequests": len(executor.active_requests),
        "numQueuedRequests": len(executor.waiting),
        "kvCacheStats": {
            "usedNumBlocks": pool.used,
            "maxNumBlocks": pool.total,
            "freeNumBlocks": pool.total - pool.used,
            "tokensPerBlock": pool.tokens_per_block,
        },
        "inflightBatchingStats": {
            "numContextRequests": len(batch.context_requests),
            "numCtxTokens": sum(r.context_chunk_size for r in batch.context_requests),
            "numCtxKvTokens": sum(r.context_current_position for r in batch.context_requests),
            "numGenRequests": len(batch.generation_requests),
            "numGenKvTokens": sum(len(r.ids) for r in batch.generation_requests),
            "numQueuedContextRequests": len(queued),
            "numQueuedCtxTokens": sum(r.context_len for r in queued),
            "numQueuedGenRequests": 0,
            "numQueuedGenKvTokens": 0,
            "numPausedRequests": len(held),
            "numPausedKvTokens": sum(r.kv_tokens for r in held),
        },
    }
