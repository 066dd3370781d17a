"""Keeps the ledger from growing for ever: deletes work that ended long ago."""

import asyncio
import logging
import time

from paceline_runtime.errors import PacelineError
from paceline_store.store import Store

_log = logging.getLogger(__name__)

BATCH_ROWS = 200
"""Deleted at a time: a transaction of some milliseconds, between which other writers get their turn."""


async def keep_for(store: Store, keep_s: float, *, interval_s: float = 60.0) -> None:
    """Delete what ended more than `keep_s` seconds ago, now and every `interval_s` seconds, until cancelled.

    With `keep_s` 0 nothing is ever deleted, and it returns at once. A store that is down is asked again later.
    """
    if keep_s <= 0:
        return
    while True:
        ended_before_unix_ms = round(1000 * (time.time() - keep_s))
        try:
            while deleted := await store.prune(ended_before_unix_ms, limit=BATCH_ROWS):
                _log.info("old work deleted from the store", extra={"rows": deleted})
        except PacelineError as error:
            _log.warning("old work was not deleted from the store", extra={"reason": error.message})
        await asyncio.sleep(interval_s)
