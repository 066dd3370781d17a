"""What is written of a request, when, and what waits for it: `none`, `async`, `sync`."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import numpy as np
from google.protobuf.json_format import MessageToJson

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2
from paceline_router.attempt import Attempt
from paceline_router.clock import Clock
from paceline_router.engine import Engine
from paceline_router.request import LiveRequest
from paceline_router.states import State
from paceline_runtime.errors import PacelineError, Reason
from paceline_store.rows import (
    AttemptRow,
    CheckpointRow,
    EngineRow,
    EstimateRow,
    OutcomeRow,
    RequestChange,
    RequestRow,
    Row,
)

log = logging.getLogger(__name__)

_SYNC_RETRY_S: Final = 0.1


class Writer(Protocol):
    """The part of `paceline_store.write_behind.WriteBehind` that is needed here."""

    @property
    def degraded(self) -> bool: ...

    def put(self, row: Row) -> bool: ...

    async def commit(self, rows: Row | Iterable[Row]) -> None: ...


class Durability:
    """Writes the ledger. Without a writer nothing is kept, and `sync` is refused.

    `async` rows are queued and never waited for. `sync` requests have a pump each: it commits what is new and
    only then releases it to the readers; the end too.
    """

    def __init__(
        self,
        writer: Writer | None,
        router_id: str,
        clock: Clock,
        checkpoint_interval_ms: float,
        sync_timeout_s: float,
    ) -> None:
        self._writer = writer
        self._router_id = router_id
        self._clock = clock
        self._interval_s = checkpoint_interval_ms / 1000
        self._sync_timeout_s = sync_timeout_s
        self._unsaved: dict[LiveRequest, None] = {}
        self._pumps: dict[LiveRequest, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self.on_sync_failed: Callable[[LiveRequest, PacelineError], None] | None = None
        self.rows_refused = 0

    @property
    def degraded(self) -> bool:
        """True while the store does not take writes."""
        return self._writer is not None and self._writer.degraded

    @property
    def enabled(self) -> bool:
        """True if there is a store."""
        return self._writer is not None

    async def admit(self, request: LiveRequest) -> None:
        """Write the new request; `sync` waits for the commit. Raises STORE_UNAVAILABLE for `sync` only."""
        if request.durability == generation_pb2.DURABILITY_SYNC:
            if self._writer is None:
                message = "durability sync needs a store, and this router has none; use async or none"
                raise PacelineError(Reason.STORE_UNAVAILABLE, message, retryable=False)
            if self._writer.degraded:
                message = "the store is down, so durability sync cannot be promised; use async, or try again"
                raise PacelineError(Reason.STORE_UNAVAILABLE, message)
            request.recorded = True
            await self._writer.commit(self._admission_rows(request))
            wake = asyncio.Event()
            task = asyncio.create_task(self._pump(request, wake), name=f"sync {request.request_id}")
            self._pumps[request] = (task, wake)
        elif self._keeps(request):
            request.recorded = True
            self._put(*self._admission_rows(request))

    def resume_sync(self, request: LiveRequest) -> None:
        """Go on releasing a `sync` request that was taken over from an earlier life."""
        if request.durability == generation_pb2.DURABILITY_SYNC and self._writer is not None:
            wake = asyncio.Event()
            task = asyncio.create_task(self._pump(request, wake), name=f"sync {request.request_id}")
            self._pumps[request] = (task, wake)

    def attempt(self, attempt: Attempt) -> None:
        """An attempt began or ended."""
        if self._keeps(attempt.request):
            self._put(
                AttemptRow(
                    request_id=attempt.request.request_id,
                    number=attempt.number,
                    attempt_key=attempt.key,
                    engine_id=attempt.engine.engine_id,
                    incarnation=attempt.incarnation,
                    reason=f"{attempt.explained.policy}: {attempt.explained.reason}",
                    from_index=attempt.from_index,
                    finish_reason=attempt.finish_reason,
                    placed_unix_ms=attempt.placed_unix_ms,
                )
            )

    def accepted(self, request: LiveRequest) -> None:
        """An engine took it in: the prompt's ids are known."""
        if self._keeps(request):
            self._put(
                RequestChange(
                    request.request_id,
                    int(request.state),
                    prompt_ids=request.prompt_ids or None,
                    prompt_tokens=request.prompt_tokens,
                )
            )

    def tokens(self, request: LiveRequest) -> None:
        """New tokens are in the request's output: release them, at once or after their commit."""
        if request.durability == generation_pb2.DURABILITY_SYNC and request in self._pumps:
            self._pumps[request][1].set()
            return
        first = request.released == 0
        request.released = request.output.count
        request.notify(urgent=first)
        if request.durability == generation_pb2.DURABILITY_ASYNC and self._writer is not None:
            self._unsaved[request] = None

    def ended(self, request: LiveRequest) -> None:
        """The request ended: write it, and release the end, at once or after its commit."""
        if request.durability == generation_pb2.DURABILITY_SYNC and request in self._pumps:
            self._pumps[request][1].set()
            return
        self._unsaved.pop(request, None)
        if request.durability == generation_pb2.DURABILITY_SYNC and self._writer is not None:
            # Nobody commits its tokens any more: what was not released stays so, and the end says it.
            _withhold(request)
        else:
            request.released = request.output.count
        self._put_end(request)
        _release_end(request)

    def engine(self, engine: Engine, *, lost: bool) -> None:
        """An incarnation appeared or went."""
        if self._writer is not None:
            now = self._clock.unix_ms()
            self._put(
                EngineRow(
                    engine.engine_id,
                    engine.incarnation,
                    engine.link.endpoint,
                    engine.capabilities.SerializeToString(),
                    first_seen_unix_ms=engine.started_unix_ms or now,
                    lost_unix_ms=now if lost else None,
                )
            )

    def put(self, row: Row) -> None:
        """Queue any other row."""
        if self._writer is not None:
            self._put(row)

    async def run(self) -> None:
        """Write the progress of `async` requests, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            unsaved, self._unsaved = self._unsaved, {}
            for request in unsaved:
                if not request.ended:
                    self._put(*self._checkpoint(request))

    async def close(self) -> None:
        """End the pumps."""
        tasks = [task for task, _ in self._pumps.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _keeps(self, request: LiveRequest) -> bool:
        return self._writer is not None and request.durability != generation_pb2.DURABILITY_NONE

    def _put(self, *rows: Row) -> None:
        assert self._writer is not None
        for row in rows:
            if not self._writer.put(row):
                self.rows_refused += 1

    def _put_end(self, request: LiveRequest) -> None:
        # Not of a request that was refused before it had a row: one of the same id may be another's.
        if self._keeps(request) and request.recorded:
            tokens = self._checkpoint(request) if request.released == request.output.count else []
            self._put(*tokens, *self._end_rows(request))

    def _checkpoint(self, request: LiveRequest) -> list[Row]:
        """The tokens since the last one, as at most one row."""
        first, last = request.checkpointed, request.output.count
        if last <= first:
            return []
        ids, lengths, text = request.output.span(first, last, request.output.text_offset(first))
        request.checkpointed = last
        return [CheckpointRow(request.request_id, first, last - first, ids, lengths, text)]

    def _admission_rows(self, request: LiveRequest) -> list[Row]:
        spec = generation_pb2.GenerationSpec()
        spec.CopyFrom(request.spec)
        if request.text:
            spec.text = request.text.decode()
        else:
            spec.token_ids = request.prompt_ids
        rows: list[Row] = [
            RequestRow(
                request_id=request.request_id,
                router_id=self._router_id,
                model=request.spec.model,
                tenant=request.tenant,
                app=request.spec.app,
                state=int(request.state),
                slo_json=MessageToJson(request.spec.slo, indent=None),
                durability=request.durability,
                arrived_unix_ms=request.arrival.unix_ms,
                spec=spec.SerializeToString(),
                prompt_ids=request.prompt_ids or None,
                prompt_tokens=request.prompt_tokens,
                max_tokens=request.max_tokens,
                task_id=request.task_id,
            )
        ]
        if request.estimate is not None:
            message = request.estimate.message
            rows.append(
                EstimateRow(
                    request.request_id,
                    0,
                    message.source,
                    message.model_version,
                    request.estimate.p50,
                    request.estimate.p90,
                    np.array(message.probabilities, dtype="<f4").tobytes(),
                )
            )
        return rows

    def _end_rows(self, request: LiveRequest) -> list[Row]:
        assert request.finished is not None
        outcome = request.finished.outcome
        return [
            RequestChange(
                request.request_id,
                int(request.state),
                prompt_tokens=request.prompt_tokens,
                finished=request.finished.SerializeToString(),
                finished_unix_ms=self._clock.unix_ms(),
            ),
            OutcomeRow(
                request.request_id,
                request.output.count,
                outcome.attained,
                outcome.ttft_ms,
                outcome.tbt_mean_ms,
                outcome.ttlt_ms,
                outcome.tokens_in_time,
            ),
        ]

    async def _pump(self, request: LiveRequest, wake: asyncio.Event) -> None:
        """Commits what is new of one `sync` request, then releases it; ends with it."""
        try:
            while not request.end_released:
                await wake.wait()
                wake.clear()
                ended, count = request.ended, request.output.count
                rows = self._checkpoint(request)
                if ended:
                    rows += self._end_rows(request)
                if not await self._commit_in_time(request, rows):
                    return
                first = request.released == 0
                request.released = count
                if ended:
                    _release_end(request)
                else:
                    request.notify(urgent=first)
        finally:
            self._pumps.pop(request, None)

    async def _commit_in_time(self, request: LiveRequest, rows: list[Row]) -> bool:
        """Commit, trying again while the store is down, for as long as a client may be kept waiting."""
        assert self._writer is not None
        problem: PacelineError | None = None
        try:
            async with asyncio.timeout(self._sync_timeout_s):
                while True:
                    try:
                        await self._writer.commit(rows)
                        return True
                    except PacelineError as error:
                        problem = error
                        if not error.retryable:
                            break
                        await asyncio.sleep(_SYNC_RETRY_S)
        except TimeoutError:
            pass
        log.error("a sync request could not be committed", extra={"request_id": request.request_id})
        self._pumps.pop(request, None)
        request.checkpointed = request.released
        message = "the store did not take its tokens in time, so durability sync cannot be kept"
        problem = problem or PacelineError(Reason.STORE_UNAVAILABLE, message)
        if request.ended:
            # It ended while it waited: an end without all of its tokens is a failure.
            _withhold(request, problem)
            self._put_end(request)
            _release_end(request)
        elif self.on_sync_failed is not None:
            self.on_sync_failed(request, problem)
        return False


def _withhold(request: LiveRequest, problem: PacelineError | None = None) -> None:
    """End it with the tokens that were released. `problem`: why not with all of them."""
    assert request.finished is not None
    request.finished.output_tokens = request.released
    if problem is not None and request.state is State.FINISHED:
        request.state = State.FAILED
        request.finished.finish_reason = attempt_pb2.FINISH_REASON_FAILED
        request.finished.failure.reason = problem.reason.value
        request.finished.failure.message = problem.message
        request.finished.failure.retryable = problem.retryable
        request.finished.outcome.attained = False


def _release_end(request: LiveRequest) -> None:
    request.end_released = True
    request.notify(urgent=True)
    request.wake_waiters()
