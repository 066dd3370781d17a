"""The inner scheduler: who gets memory, then who runs. The names of the classes are those of the surface."""

from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Sequence

from paceline_executor.trtllm.emulator.blocks import BlockPool
from paceline_executor.trtllm.emulator.request import LlmRequest, LlmRequestState

Requests = list[LlmRequest]

SchedulerOutput = namedtuple(
    "SchedulerOutput",
    [
        "encoder_requests",
        "context_requests",
        "generation_requests",
        "paused_requests",
        "fitting_disagg_gen_init_requests",
        "num_fitting_requests",
    ],
)
"""Its fields differ between versions: use `_replace`."""


class RequestScheduler(ABC):
    """Chooses what an iteration works on."""

    @abstractmethod
    def schedule_request(self, active_requests: Requests, inflight_request_ids: set[int]) -> SchedulerOutput:
        """The requests of the next iteration."""

    @abstractmethod
    def can_schedule(self, requests: Requests) -> bool:
        """True if all of these could run together."""


class BindCapacityScheduler:
    """GUARANTEED_NO_EVICT: a request starts when its worst case fits beside the worst cases of all that started."""

    def __init__(self, pool: BlockPool, max_num_requests: int) -> None:
        self._pool = pool
        self._max_num_requests = max_num_requests

    def schedule_request(self, active_requests: Requests) -> tuple[Requests, Requests, Requests]:
        """(fitting, fitting of a disaggregated generation, paused)."""
        reserved = sum(self.worst_case_blocks(request) for request in active_requests if request.started)
        fitting = [request for request in active_requests if request.started]
        for request in active_requests:
            if request.started:
                continue
            needed = self.worst_case_blocks(request)
            if reserved + needed > self._pool.total or len(fitting) >= self._max_num_requests:
                break
            reserved += needed
            fitting.append(request)
        return fitting, [], []

    def worst_case_blocks(self, request: LlmRequest) -> int:
        """Blocks of prompt and all tokens it may make."""
        return self._pool.blocks_for(request.py_prompt_len + request.sampling.max_tokens)


class BindMicroBatchScheduler:
    """Generation first, then chunks of context, as far as the token budget goes."""

    def __init__(self, max_batch_size: int, max_num_tokens: int, chunk_unit: int, *, chunked: bool) -> None:
        self.max_batch_size = max_batch_size
        self.max_num_tokens = max_num_tokens
        self._chunk_unit = chunk_unit
        self._chunked = chunked

    def schedule(
        self, active_requests: Requests, inflight_request_ids: set[int]
    ) -> tuple[Requests, Requests]:
        """(context, generation); sets each context request's chunk."""
        able = [request for request in active_requests if request.request_id not in inflight_request_ids]
        generation = [r for r in able if r.state is LlmRequestState.GENERATION_IN_PROGRESS]
        generation = generation[: self.max_batch_size]
        budget = self.max_num_tokens - len(generation)
        context: Requests = []
        for request in able:
            if request.state is not LlmRequestState.CONTEXT_INIT:
                continue
            if len(context) + len(generation) >= self.max_batch_size or budget <= 0:
                break
            chunk = self.chunk_of(request, budget)
            if chunk == 0:
                break
            request.context_chunk_size = chunk
            context.append(request)
            budget -= chunk
        return context, generation

    def chunk_of(self, request: LlmRequest, budget: int) -> int:
        """Tokens of context that fit: all that remain, or whole units of them; 0 if none."""
        remaining = request.context_len - request.context_current_position
        if remaining <= budget:
            return remaining
        return budget // self._chunk_unit * self._chunk_unit if self._chunked else 0


class SimpleScheduler(RequestScheduler):
    """First manager: the two layers one after the other. KV grows after scheduling, for what was scheduled."""

    def __init__(
        self, capacity_scheduler: BindCapacityScheduler, micro_batch_scheduler: BindMicroBatchScheduler
    ) -> None:
        self.capacity_scheduler = capacity_scheduler
        self.micro_batch_scheduler = micro_batch_scheduler

    def schedule_request(self, active_requests: Requests, inflight_request_ids: set[int]) -> SchedulerOutput:
        """The requests of the next iteration."""
        fitting, disagg, paused = self.capacity_scheduler.schedule_request(active_requests)
        context, generation = self.micro_batch_scheduler.schedule(fitting, inflight_request_ids)
        return SchedulerOutput([], context, generation, paused, disagg, len(fitting))

    def can_schedule(self, requests: Requests) -> bool:
        """True if all of these fit."""
        fitting, _, _ = self.capacity_scheduler.schedule_request(requests)
        return len(fitting) == len(requests)


class KVCacheV2Scheduler(RequestScheduler):
    """Second manager: allocates while it schedules; under pressure the newest request loses its KV."""

    def __init__(
        self, micro: BindMicroBatchScheduler, kv_cache_manager: BlockPool, max_num_requests: int
    ) -> None:
        self._micro = micro
        self.kv_cache_manager = kv_cache_manager
        self.max_num_requests = max_num_requests

    def schedule_request(self, active_requests: Requests, inflight_request_ids: set[int]) -> SchedulerOutput:
        """The requests of the next iteration. Raises RuntimeError where nothing can ever run again."""
        context, generation = self._micro.schedule(active_requests, inflight_request_ids)
        paused: Requests = []
        running: Requests = []
        for request in generation:
            while request not in paused and not self._grow(request, request.kv_tokens + 1):
                victim = self._newest(active_requests, paused)
                if victim is None:
                    break
                paused.append(victim)
                self.kv_cache_manager.release(victim.holding)
            if request not in paused:
                running.append(request)
        running = [request for request in running if request not in paused]
        started = [
            request
            for request in context
            if not paused
            and self._grow(request, request.context_current_position + request.context_chunk_size)
        ]
        if not running and not started and generation and not paused:
            raise RuntimeError(f"{len(generation)} generation requests are active and none can be scheduled")
        return SchedulerOutput([], started, running, paused, [], len(running) + len(started))

    def can_schedule(self, requests: Requests) -> bool:
        """True if all of these fit now."""
        needed = sum(self.kv_cache_manager.blocks_for(len(request.ids) + 1) for request in requests)
        return needed <= self.kv_cache_manager.total

    def _grow(self, request: LlmRequest, tokens: int) -> bool:
        return self.kv_cache_manager.grow(request.holding, tokens)

    def _newest(self, active: Sequence[LlmRequest], paused: Requests) -> LlmRequest | None:
        return next((r for r in reversed(active) if r.holding.blocks and r not in paused), None)
