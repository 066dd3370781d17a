"""The emulated executor loop: fetch, schedule, compute (that is: wait), sample, cancel, respond, count.

Time comes from the roofline of an engine profile, prefill and decode in one pass. A driver wakes it, so that a test may
turn the clock.
"""

import itertools
from collections import deque
from collections.abc import Callable

from paceline_core.engines.roofline import StepTimes
from paceline_executor.simulated.driver import Driver
from paceline_executor.trtllm.emulator.blocks import BlockPool
from paceline_executor.trtllm.emulator.parameters import Faults
from paceline_executor.trtllm.emulator.request import LlmRequest, LlmRequestState, Response
from paceline_executor.trtllm.emulator.scheduler import RequestScheduler, SchedulerOutput
from paceline_executor.trtllm.emulator.speaker import Speaker
from paceline_executor.trtllm.emulator.stats import StatsQueue, stats_row
from paceline_executor.trtllm.emulator.waiting_queue import WaitingQueue

_MAX_LAG_S = 0.5
"""A driver later than this is not made up for."""


class PyExecutor:
    """One engine loop. `scheduler` may be wrapped from outside, as on the real one."""

    def __init__(
        self,
        driver: Driver,
        times: StepTimes,
        scheduler: RequestScheduler,
        waiting: WaitingQueue,
        pool: BlockPool,
        speaker: Speaker,
        *,
        max_batch_size: int,
        stream_interval: int,
        allocates_inline: bool,
        end_id: int,
        stats: StatsQueue | None,
        faults: Faults,
    ) -> None:
        self.scheduler = scheduler
        self.active_requests: list[LlmRequest] = []
        self.inflight_req_ids: set[int] = set()
        self.iter_counter = 0
        self.waiting = waiting
        self.pool = pool
        self.on_iteration: list[Callable[[int], None]] = []
        """Called with the number of each iteration that ends."""
        self.fatal_error: Exception | None = None
        self.is_shutdown = False
        self._driver = driver
        self._times = times
        self._speaker = speaker
        self._max_batch_size = max_batch_size
        self._stream_interval = stream_interval
        self._allocates_inline = allocates_inline
        self._end_id = end_id
        self._stats = stats
        self._faults = faults
        self._ids = itertools.count(1)
        self._canceled: set[int] = set()
        self._new: deque[LlmRequest] = deque()
        self._batch: SchedulerOutput | None = None
        self._duration_ms = 0.0
        self._due_s = 0.0
        self._awake = False

    @property
    def engine(self) -> "PyExecutor":
        """The loop itself, as the client side of a single-process engine holds it."""
        return self

    @property
    def _fatal_error(self) -> Exception | None:
        return self.fatal_error

    # --- asked from outside ----------------------------------------------------------------------------------

    def enqueue(self, request: LlmRequest) -> None:
        """A new request; looked at when the next iteration begins."""
        request.request_id = next(self._ids)
        request.speech = self._speaker.state_of(request.ids, request.adapter)
        self._new.append(request)
        self._wake()

    def cancel(self, client_id: int) -> None:
        """Enqueue a cancel; carried out when an iteration ends."""
        if not self._faults.ignore_aborts:
            self._canceled.add(client_id)
            self._wake()

    def wake(self) -> None:
        """Something outside changed what may run."""
        self._wake()

    def shutdown(self) -> None:
        """Stop; whatever is left ends with an error."""
        self.is_shutdown = True
        self._fail_all("the executor was shut down")

    # --- the loop --------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._awake and not self.is_shutdown and self.fatal_error is None:
            self._awake = True
            self._due_s = self._driver.now_s()
            self._driver.call_at(self._due_s, self._begin)

    def _begin(self) -> None:
        if self.is_shutdown or self.fatal_error is not None:
            return
        if 0 < self._faults.hang_after_iterations <= self.iter_counter:
            # Stays awake for ever: nobody wakes it, and no iteration ends.
            return
        if 0 < self._faults.fatal_after_iterations <= self.iter_counter:
            self.fatal_error = RuntimeError("emulated fatal error")
            self._fail_all("emulated fatal error")
            return
        self._fetch_new_requests()
        try:
            batch = self.scheduler.schedule_request(self.active_requests, self.inflight_req_ids)
        except RuntimeError as error:
            self.fatal_error = error
            self._fail_all(str(error))
            return
        for request in batch.paused_requests:
            request.pause_by_recompute()
        if not batch.context_requests and not batch.generation_requests:
            self._handle_canceled_requests()
            if not self._new and not (self._canceled and (self.active_requests or len(self.waiting))):
                self._canceled.clear()
                self._awake = False
                return
            self._driver.call_at(self._driver.now_s(), self._begin)
            return
        self._prepare_resources(batch)
        self._batch = batch
        self._duration_ms = self._iteration_ms(batch)
        now_s = self._driver.now_s()
        if now_s - self._due_s > _MAX_LAG_S:
            self._due_s = now_s
        self._due_s += self._duration_ms / 1e3
        self._driver.call_at(self._due_s, self._finish)

    def _finish(self) -> None:
        batch = self._batch
        if batch is None or self.is_shutdown or self.fatal_error is not None:
            return
        self._batch = None
        self.iter_counter += 1
        row = None if self._stats is None else stats_row(self, batch, self._duration_ms)
        for request in batch.context_requests:
            request.context_current_position += request.context_chunk_size
            self.pool.commit(request.holding, request.ids[: request.context_current_position], request.salt)
            if request.context_current_position == request.context_len:
                request.state = LlmRequestState.GENERATION_IN_PROGRESS
                self._sample(request)
        for request in batch.generation_requests:
            self._sample(request)
        self._handle_canceled_requests()
        self._handle_responses()
        if self._stats is not None and row is not None:
            if self._faults.older_build:
                del row["inflightBatchingStats"]
            self._stats.put(row)
        for listener in self.on_iteration:
            listener(self.iter_counter)
        # A turn of the driver later, as what was answered now is taken in by the iteration after.
        self._driver.call_at(self._driver.now_s(), self._begin)

    def _fetch_new_requests(self) -> None:
        while self._new:
            self.waiting.add_request(self._new.popleft())
        while len(self.waiting) and len(self.active_requests) < self._max_batch_size:
            self.active_requests.append(self.waiting.pop_request())

    def _prepare_resources(self, batch: SchedulerOutput) -> None:
        for request in batch.context_requests:
            if not request.started:
                request.started = True
                self._take_prefix(request)
        if self._allocates_inline:
            return
        for request in batch.context_requests:
            self._must_grow(request, request.context_current_position + request.context_chunk_size)
        for request in batch.generation_requests:
            self._must_grow(request, len(request.ids))

    def _take_prefix(self, request: LlmRequest) -> None:
        if request.holding.blocks:
            # Allocated while scheduling: what was taken then was taken without the tree.
            self.pool.release(request.holding)
        reused = self.pool.take_prefix(request.holding, request.ids[: request.context_len], request.salt)
        request.context_current_position = reused
        request.cached_tokens = max(request.cached_tokens, reused)
        request.context_chunk_size = min(request.context_chunk_size, request.context_len - reused)
        if self._allocates_inline:
            self._must_grow(request, reused + request.context_chunk_size)

    def _must_grow(self, request: LlmRequest, tokens: int) -> None:
        if not self.pool.grow(request.holding, tokens):
            raise AssertionError("the capacity scheduler let in more than there is memory for")

    def _iteration_ms(self, batch: SchedulerOutput) -> float:
        generation: list[LlmRequest] = batch.generation_requests
        tokens, products, before = 0, 0.0, 0
        for request in batch.context_requests:
            chunk, done = request.context_chunk_size, request.context_current_position
            tokens += chunk
            before += done
            products += chunk * (done + chunk / 2)
        return self._times.step_ms(
            len(generation), sum(len(request.ids) for request in generation), tokens, products, before
        )

    def _sample(self, request: LlmRequest) -> None:
        if request.state is LlmRequestState.GENERATION_COMPLETE:
            return
        sampling = request.sampling
        draw = None
        if sampling.temperature:
            draw = (sampling.seed or 0, request.generated)
        token = self._speaker.next(request.speech, request.ids[-1], draw, may_end=not sampling.ignore_eos)
        request.ids.append(token)
        request.unsent.append(token)
        request.decoding_iter += 1
        request.speech = self._speaker.advance(request.speech, token)
        self.pool.commit(request.holding, request.ids[: request.kv_tokens], request.salt)
        end_id = self._end_id if sampling.end_id is None else sampling.end_id
        if token == end_id and not sampling.ignore_eos:
            request.finish_by_reason("END_ID")
        elif sampling.stop_token_ids and token in sampling.stop_token_ids:
            request.finish_by_reason("STOP_WORDS")
        elif request.generated >= sampling.max_tokens:
            request.finish_by_reason("LENGTH")

    def _handle_canceled_requests(self) -> None:
        if not self._canceled:
            return
        for request in self.waiting.remove_by_ids(self._canceled):
            request.respond(Response([], "CANCELLED"))
        for request in self.active_requests:
            if request.py_client_id in self._canceled and request.finish_reason is None:
                request.finish_by_reason("CANCELLED")
        still_new = {request.py_client_id for request in self._new}
        self._canceled &= still_new
        if self._batch is None:
            self._handle_responses()

    def _handle_responses(self) -> None:
        ended = False
        for request in self.active_requests:
            over = request.state is LlmRequestState.GENERATION_COMPLETE
            due = len(request.unsent) >= self._stream_interval or request.decoding_iter == 1
            if over or (due and request.unsent):
                request.respond(Response(request.unsent, request.finish_reason, request.cached_tokens))
                request.unsent = []
            if over:
                ended = True
                self.pool.release(request.holding)
        if ended:
            self.active_requests = [
                r for r in self.active_requests if r.state is not LlmRequestState.GENERATION_COMPLETE
            ]

    def _fail_all(self, message: str) -> None:
        for request in (*self.active_requests, *self.waiting, *self._new):
            self.pool.release(request.holding)
            request.respond(Response([], None, error=message))
        self.active_requests = []
        self._new.clear()
        if self._stats is not None:
            self._stats.close()
