"""A server behind OpenAI's `/v1/completions`: token ids in, server-sent events out.

What is lost against an embedded engine: nothing is told of iterations, queue or KV; an abort is a closed connection
that nobody confirms; where no ids come back they are read out of the text, and counts may differ from the server's.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx

from paceline_executor.contract import AttemptSpec, EngineError
from paceline_executor.frames.backend import (
    BackendFacts,
    IterationRow,
    LegEnd,
    LegFailed,
    LegItem,
    LegRequest,
)
from paceline_executor.remote import llama_server
from paceline_executor.remote.dialects import Dialect

_log = logging.getLogger(__name__)
_MAX_ITEMS = 4096
_BACKOFF_S = 0.25
_NO_ROWS: tuple[IterationRow, ...] = ()
_PATH = "/v1/completions"
_DONE = "[DONE]"
ReadIds = Callable[[str], Sequence[int]]
"""Ids of a stretch of an answer's text."""


class OpenAiBackend:
    """Implements `frames.backend.Backend` over HTTP."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        model: str,
        dialect: Dialect,
        facts: BackendFacts,
        read_ids: ReadIds,
        *,
        health_failures: int,
    ) -> None:
        self._client = client
        self._model = model
        self._dialect = dialect
        self._read_ids = read_ids
        self._health_failures = health_failures
        self._failed_looks = 0
        self._salted = False
        self.facts = facts
        self.counters: Counter[str] = Counter()
        """What happened so far, by name."""

    def check(self, spec: AttemptSpec) -> None:
        """Refuse what would be ignored silently over there."""
        sampling, dialect = spec.sampling, self._dialect
        if sampling.ignore_eos and not dialect.has_ignore_eos:
            raise EngineError("INVALID_SAMPLING", f"{dialect.name} cannot ignore the end of an answer")
        if spec.cache_salt and not (dialect.has_salt or dialect.native):
            raise EngineError("UNSUPPORTED", f"{dialect.name} cannot keep caches apart by salt")

    def submit(self, request: LegRequest) -> "OpenAiLeg":
        """Nothing is sent before the leg is read; what is wrong with it comes in its stream."""
        if self._dialect.native:
            # It knows no salts: from the first one on nobody reuses what others computed.
            self._salted = self._salted or bool(request.cache_salt)
            native = llama_server.body(request, may_reuse=not self._salted)
            reader = llama_server.EventReader(self._read_ids, self.counters)
            return OpenAiLeg(self._client, llama_server.PATH, native, reader.item, self.counters)
        body = {
            "model": request.adapter or self._model,
            "prompt": request.ids,
            "max_tokens": request.max_tokens,
            "stream": True,
            **self._dialect.body(request.sampling, request.priority, request.cache_salt),
        }
        return OpenAiLeg(self._client, _PATH, body, self._read_item, self.counters)

    async def rows(self) -> AsyncIterator[IterationRow]:
        """None: the interface does not tell."""
        for row in _NO_ROWS:
            yield row

    async def fault(self) -> str:
        """Several failed looks at its health in a row."""
        try:
            answer = await self._client.get(self._dialect.health)
            problem = "" if answer.status_code < 500 else f"health answers {answer.status_code}"
        except httpx.HTTPError as error:
            problem = f"health cannot be had: {type(error).__name__}"
        self._failed_looks = self._failed_looks + 1 if problem else 0
        return problem if self._failed_looks >= self._health_failures else ""

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    def _read_item(self, event: dict[str, Any]) -> LegItem | None:
        if "error" in event:
            raise LegFailed(str(event["error"])[:500])
        choices = event.get("choices") or []
        if not choices:
            return None
        choice = choices[0]
        ids = choice.get("token_ids")
        if ids is None:
            text = choice.get("text") or ""
            ids = self._read_ids(text) if text else ()
            if text:
                self.counters["ids_read_from_text"] += len(ids)
        reason = choice.get("finish_reason")
        if reason is None:
            return LegItem(ids) if len(ids) else None
        stop = choice.get("stop_reason")
        end = LegEnd.LENGTH if reason == "length" else LegEnd.STOP
        known = isinstance(stop, int) and not (len(ids) and ids[-1] == stop)
        return LegItem(ids, end, stop if known else None)


class OpenAiLeg:
    """One streamed request. Aborting it closes the connection."""

    engine_id = 0

    def __init__(
        self,
        client: httpx.AsyncClient,
        path: str,
        body: dict[str, Any],
        read_item: Callable[[dict[str, Any]], LegItem | None],
        counters: Counter[str],
    ) -> None:
        self._client = client
        self._path = path
        self._body = body
        self._read_item = read_item
        self._counters = counters
        self._items: asyncio.Queue[LegItem | LegFailed] = asyncio.Queue(_MAX_ITEMS)
        self._task: asyncio.Task[None] | None = None
        self._aborted = False

    def abort(self) -> None:
        """Close the connection; the server stops when it notices, and says nothing of it."""
        self._aborted = True
        if self._task is not None:
            self._task.cancel()

    async def __aiter__(self) -> AsyncIterator[LegItem]:
        if self._aborted:
            yield LegItem((), LegEnd.CANCELLED)
            return
        self._task = asyncio.create_task(self._read(), name="remote-stream")
        self._task.add_done_callback(self._closed)
        try:
            while True:
                item = await self._items.get()
                if isinstance(item, LegFailed):
                    raise item
                yield item
                if item.end is not None:
                    return
        finally:
            self._task.cancel()

    def _closed(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            end: LegItem | LegFailed = LegItem((), LegEnd.CANCELLED)
        elif (error := task.exception()) is not None:
            end = error if isinstance(error, LegFailed) else LegFailed(f"{type(error).__name__}: {error}")
        else:
            return
        if not self._items.full():
            self._items.put_nowait(end)

    async def _read(self) -> None:
        try:
            async with self._client.stream("POST", self._path, json=self._body) as response:
                if response.status_code != 200:
                    await self._refused(response)
                async for event in _events(response):
                    item = self._read_item(event)
                    if item is not None:
                        await self._items.put(item)
                        if item.end is not None:
                            return
        except httpx.HTTPError as error:
            await asyncio.sleep(_BACKOFF_S)
            raise LegFailed(f"{type(error).__name__}: {error}") from error
        raise LegFailed("the stream ended without a finish reason")

    async def _refused(self, response: httpx.Response) -> None:
        text = (await response.aread()).decode("utf-8", "replace")[:500]
        self._counters[f"status_{response.status_code}"] += 1
        # Overload and faults of the server may pass; what it says of the request will not.
        final = response.status_code < 500 and response.status_code not in (408, 425, 429)
        if not final:
            await asyncio.sleep(_BACKOFF_S)
        raise LegFailed(f"HTTP {response.status_code}: {text}", final=final)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """JSON of server-sent events; comments and everything after [DONE] are left out."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == _DONE:
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise LegFailed(f"an event is not JSON: {data[:100]}") from error
        if isinstance(event, dict):
            yield event
