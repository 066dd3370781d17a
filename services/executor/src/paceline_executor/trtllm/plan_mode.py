"""Plan mode: the plan inside the engine's own scheduler, iteration by iteration, and pauses that keep KV.

It uses private parts of TensorRT-LLM (`private` in surface.yaml), so it is off by default, bound to versions that it
was checked against, and for one rank: with more, every rank would have to see the same plan in the same iteration.

First KV manager: the plan is applied between the two layers of the scheduler. Held requests stay in the capacity
computation, so what is reserved for them stays reserved. Second manager: it allocates while it schedules, so its input
is filtered instead; a held request keeps its pages.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

_log = logging.getLogger(__name__)
PINNED_VERSIONS: tuple[str, ...] = ("1.3.0rc29",)
"""Versions whose private names are those of the surface. Reading them is not running them: see the documentation."""
_IDLE_WAIT_S = 0.001


class PlanModeError(RuntimeError):
    """Plan mode cannot be had here."""


class PlanMailbox:
    """The newest plan, written by the agent, read by the executor's thread. Replaced whole, never changed."""

    def __init__(self) -> None:
        self._newest: tuple[dict[int, tuple[int, int]], int, bool] = ({}, 0, False)
        self.on_post: Callable[[], None] | None = None
        """Called when something may have become runnable."""

    def post(self, order: Sequence[tuple[int, int]], max_batch: int) -> None:
        """(engine id, most tokens it may make, 0 for no bound) in order; the first `max_batch` run."""
        ranks = {client_id: (rank, limit) for rank, (client_id, limit) in enumerate(order)}
        newest = (ranks, max_batch, any(limit for _, limit in order))
        if newest != self._newest:
            self._newest = newest
            if self.on_post is not None:
                self.on_post()

    def allowed(self, requests: Sequence[Any]) -> list[Any]:
        """Of these requests those that may run now, in the engine's own order; the others lose their batch index."""
        ranks, max_batch, bounded = self._newest
        if bounded:
            able = [request for request in requests if _within_limit(request, ranks)]
        else:
            able = [request for request in requests if request.py_client_id in ranks]
        if len(able) == len(requests) <= max_batch:
            # The common case, in every iteration of the engine.
            return able
        if len(able) > max_batch:
            able = sorted(able, key=lambda request: ranks[request.py_client_id][0])[:max_batch]
        chosen = {id(request) for request in able}
        for request in requests:
            if id(request) not in chosen and request.py_batch_idx is not None:
                request.py_batch_idx = None
        return [request for request in requests if id(request) in chosen]


class PlannedMicroBatch:
    """Stands between capacity and micro batch: only what the plan allows is batched."""

    def __init__(self, inner: Any, mailbox: PlanMailbox, idle_wait_s: float) -> None:
        self._inner = inner
        self._mailbox = mailbox
        self._idle_wait_s = idle_wait_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def schedule(self, active_requests: Sequence[Any], inflight_request_ids: set[int]) -> Any:
        """The batch of the next iteration."""
        allowed = self._mailbox.allowed(active_requests)
        _rest_if_all_held(allowed, active_requests, self._idle_wait_s)
        return self._inner.schedule(allowed, inflight_request_ids)


class PlannedScheduler:
    """Decorates a request scheduler of the engine; everything else of it shows through."""

    def __init__(self, inner: Any, mailbox: PlanMailbox, *, idle_wait_s: float = _IDLE_WAIT_S) -> None:
        self._inner = inner
        self._mailbox = mailbox
        self._idle_wait_s = idle_wait_s
        self._between_layers = hasattr(inner, "micro_batch_scheduler") and hasattr(
            inner, "capacity_scheduler"
        )
        if self._between_layers:
            inner.micro_batch_scheduler = PlannedMicroBatch(inner.micro_batch_scheduler, mailbox, idle_wait_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def schedule_request(self, active_requests: Sequence[Any], inflight_request_ids: set[int]) -> Any:
        """What the next iteration works on, by the plan."""
        if self._between_layers:
            return self._inner.schedule_request(active_requests, inflight_request_ids)
        allowed = self._mailbox.allowed(active_requests)
        _rest_if_all_held(allowed, active_requests, self._idle_wait_s)
        return self._inner.schedule_request(allowed, inflight_request_ids)

    def can_schedule(self, requests: Sequence[Any]) -> Any:
        """As before."""
        return self._inner.can_schedule(requests)


def install(
    llm: Any, mailbox: PlanMailbox, *, version: str, ranks: int, overlap: bool, emulated: bool = False
) -> PlannedScheduler:
    """Put the plan into an engine that runs in this process. Raises PlanModeError where that was not made for."""
    if not emulated and version not in PINNED_VERSIONS:
        raise PlanModeError(f"plan mode knows {', '.join(PINNED_VERSIONS)}, not {version}: use frame mode")
    if ranks != 1:
        raise PlanModeError(f"plan mode is for one rank, not {ranks}: use frame mode")
    if overlap:
        raise PlanModeError(
            "plan mode needs disable_overlap_scheduler: skipping a request under overlap is unproven"
        )
    executor = getattr(getattr(llm, "_executor", None), "engine", None)
    if executor is None or not hasattr(executor, "scheduler"):
        raise PlanModeError("the engine does not run in this process: set TLLM_WORKER_USE_SINGLE_PROCESS=1")
    planned = PlannedScheduler(executor.scheduler, mailbox, idle_wait_s=0.0 if emulated else _IDLE_WAIT_S)
    executor.scheduler = planned
    if emulated:
        mailbox.on_post = executor.wake
    _log.warning("plan mode is on: private parts of TensorRT-LLM %s are wrapped", version)
    return planned


def _within_limit(request: Any, ranks: dict[int, tuple[int, int]]) -> bool:
    entry = ranks.get(request.py_client_id)
    if entry is None:
        return False
    limit = entry[1]
    return limit == 0 or request.get_num_tokens(0) - request.py_prompt_len < limit


def _rest_if_all_held(allowed: Sequence[Any], active: Sequence[Any], wait_s: float) -> None:
    """A loop whose requests are all held would spin."""
    if active and not allowed and wait_s:
        time.sleep(wait_s)
