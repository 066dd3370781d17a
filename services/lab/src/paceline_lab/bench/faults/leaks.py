"""What is left behind when every client has its end: in the router, the schedulers, the engines and the ledger."""

import asyncio
from collections.abc import Mapping

import grpc

from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from paceline_lab.bench.faults.chaos import Database
from paceline_runtime.channel import channel

_POLL_S = 0.2
_CALL_S = 5.0


async def leftovers(
    router: str, schedulers: Mapping[str, str], database: Database, patience_s: float
) -> dict[str, int]:
    """Requests live in the router, rows of schedulers, KV tokens of engines, unfinished rows of the ledger.

    What ends late for a good reason gets `patience_s` seconds; then what is there counts as leaked. `schedulers`: name
    to address. A part that does not answer counts as 1 under its name.
    """
    found: dict[str, int] = {}
    try:
        async with asyncio.timeout(patience_s):
            while True:
                found = await _look(router, schedulers, database)
                if not any(found.values()):
                    return found
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return found


async def _look(router: str, schedulers: Mapping[str, str], database: Database) -> dict[str, int]:
    found = {"router_requests": 0, "scheduler_rows": 0, "kv_tokens": 0, "ledger_rows": 0}
    try:
        async with channel(router) as connection:
            query = router_pb2.ListRequestsRequest(live_only=True, limit=1000)
            stub = router_pb2_grpc.RouterServiceStub(connection)
            found["router_requests"] = len((await stub.ListRequests(query, timeout=_CALL_S)).requests)
    except grpc.aio.AioRpcError:
        found["router"] = 1
    for name, address in schedulers.items():
        try:
            async with channel(address) as connection:
                table = scheduler_pb2_grpc.SchedulerServiceStub(connection)
                rows = await table.ListRequests(scheduler_pb2.ListRequestsRequest(), timeout=_CALL_S)
                load = (await table.GetLoad(scheduler_pb2.GetLoadRequest(), timeout=_CALL_S)).load
        except grpc.aio.AioRpcError:
            found[name] = 1
            continue
        found["scheduler_rows"] += rows.total
        found["kv_tokens"] += load.kv_used_tokens
    found["ledger_rows"] = await database.live_rows()
    return found
