"""Requests that have not been taken in: first come first served, or by priority."""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from paceline_executor.trtllm.emulator.request import LlmRequest


class WaitingQueue(Protocol):
    """Where new requests wait."""

    def add_request(self, request: LlmRequest) -> None:
        """Append."""

    def pop_request(self) -> LlmRequest:
        """The next one; raises IndexError if there is none."""

    def remove_by_ids(self, client_ids: set[int]) -> list[LlmRequest]:
        """Take these out."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[LlmRequest]: ...


class FCFSWaitingQueue:
    """Ignores priorities."""

    def __init__(self) -> None:
        self._items: deque[LlmRequest] = deque()

    def add_request(self, request: LlmRequest) -> None:
        """Append."""
        self._items.append(request)

    def pop_request(self) -> LlmRequest:
        """The oldest."""
        return self._items.popleft()

    def remove_by_ids(self, client_ids: set[int]) -> list[LlmRequest]:
        """Take these out."""
        removed = [request for request in self._items if request.py_client_id in client_ids]
        self._items = deque(r for r in self._items if r.py_client_id not in client_ids)
        return removed

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[LlmRequest]:
        return iter(self._items)


class PriorityWaitingQueue:
    """The highest priority first, first come first served within one; no aging."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, LlmRequest]] = []
        self._arrivals = itertools.count()

    def add_request(self, request: LlmRequest) -> None:
        """Add."""
        heapq.heappush(self._heap, (-request.priority, next(self._arrivals), request))

    def pop_request(self) -> LlmRequest:
        """The most urgent."""
        return heapq.heappop(self._heap)[2]

    def remove_by_ids(self, client_ids: set[int]) -> list[LlmRequest]:
        """Take these out."""
        removed = [entry[2] for entry in self._heap if entry[2].py_client_id in client_ids]
        self._heap = [entry for entry in self._heap if entry[2].py_client_id not in client_ids]
        heapq.heapify(self._heap)
        return removed

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[LlmRequest]:
        return (entry[2] for entry in sorted(self._heap))
