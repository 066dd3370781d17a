"""The one reader of an engine's iteration statistics: reading a row takes it away from everybody else."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from paceline_executor.frames.backend import IterationRow
from paceline_executor.trtllm.surface import surface

_log = logging.getLogger(__name__)
_POLL_S = 2.0
_BACKOFF_S = 0.1
_NEEDED = (
    "numContextRequests", "numCtxTokens", "numCtxKvTokens", "numGenRequests", "numGenKvTokens",
)  # fmt: skip


class StatsReader:
    """Reads rows as iterations end. A build without the nested fields gives none, and that is said once."""

    def __init__(self, llm: Any, counters: Counter[str]) -> None:
        self._llm = llm
        self._counters = counters
        self._told = False
        self.closed = False

    async def rows(self) -> AsyncIterator[IterationRow]:
        """Rows until closed. The engine's iterator ends whenever nothing comes for a while: ask again."""
        loop = asyncio.get_running_loop()
        while not self.closed:
            began_s, came = loop.time(), False
            async for raw in self._llm.get_stats_async(timeout=_POLL_S):
                came = True
                row = self._read(raw)
                if row is not None:
                    yield row
            if not came and loop.time() - began_s < _POLL_S / 2:
                # It ended at once: an engine that is closing, or a build that does not wait.
                await asyncio.sleep(_BACKOFF_S)

    def _read(self, raw: dict[str, Any]) -> IterationRow | None:
        missing = [name for name in surface().stats.required if name not in raw]
        nested = raw.get("inflightBatchingStats") or {}
        missing += [name for name in _NEEDED if name not in nested]
        if missing:
            self._counters["rows_unfit"] += 1
            if not self._told:
                self._told = True
                _log.warning("iteration statistics lack %s: step times are not reported", ", ".join(missing))
            return None
        if not nested["numContextRequests"] and not nested["numGenRequests"]:
            # Zero-filled, or an iteration of nothing: it would read as an idle engine.
            return None
        kv = raw["kvCacheStats"]
        contexts = nested["numContextRequests"]
        return IterationRow(
            ms=float(raw["iterLatencyMS"]),
            context_tokens=int(nested["numCtxTokens"]),
            context_before_tokens=int(nested["numCtxKvTokens"]) // max(contexts, 1),
            decode_batch=int(nested["numGenRequests"]),
            decode_context_tokens=int(nested["numGenKvTokens"]),
            queued=int(raw["numQueuedRequests"]),
            used_tokens=int(kv.get("usedNumBlocks", 0)) * int(kv.get("tokensPerBlock", 0)),
        )
