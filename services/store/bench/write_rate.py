"""How fast rows are written, and how long that holds up the event loop: `python write_rate.py [URL]`.

Prints one JSON object: checkpoint rows per second through `put`; rows per second of 64 clients that each wait for every
commit; time of a lone commit; the longest and the 99th percentile of how late a 1 ms timer of the same loop fired.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from paceline_store import CheckpointRow, Store, WriteBehind

ROWS = 20_000
REQUESTS = 200
TOKENS = 8
CLIENTS = 64
COMMITS = 50
ALONE = 200


def row(request_id: str, number: int) -> CheckpointRow:
    """A checkpoint of a few tokens."""
    return CheckpointRow(
        request_id, TOKENS * number, TOKENS, b"\1\0\0\0" * TOKENS, b"\4\0\0\0" * TOKENS, b"word" * TOKENS
    )


async def main(url: str) -> None:
    store = await Store.open(url)
    late_ms: list[float] = []
    watch = asyncio.create_task(_watch(late_ms))
    async with WriteBehind(store) as writer:
        began = time.perf_counter()
        for i in range(ROWS):
            writer.put(row(f"async-{i % REQUESTS}", i // REQUESTS))
            if i % 64 == 0:
                await asyncio.sleep(0)
        await writer.flush(60)
        async_s = time.perf_counter() - began
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(_client(writer, f"sync-{client}", COMMITS))
        sync_s = time.perf_counter() - began
        began = time.perf_counter()
        await _client(writer, "alone", ALONE)
        alone_s = time.perf_counter() - began
    watch.cancel()
    await store.close()
    late_ms.sort()
    result = {
        "database": store.name.partition(":")[0],
        "async_rows_per_s": round(ROWS / async_s),
        "sync_rows_per_s_64_clients": round(CLIENTS * COMMITS / sync_s),
        "sync_commit_alone_ms": round(1000 * alone_s / ALONE, 3),
        "loop_late_ms_p99": round(late_ms[int(len(late_ms) * 0.99)], 2),
        "loop_late_ms_max": round(late_ms[-1], 2),
    }
    print(json.dumps(result))


async def _client(writer: WriteBehind, request_id: str, commits: int) -> None:
    for number in range(commits):
        await writer.commit(row(request_id, number))


async def _watch(late_ms: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        late_ms.append(1000 * (time.perf_counter() - began) - 1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(f"sqlite:///{Path(folder) / 'ledger.db'}"))
