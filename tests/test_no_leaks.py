"""After 200 mixed requests with random ends, every table, every KV slot and every buffer is empty again."""

import asyncio
import random

import grpc
import httpx
import pytest
from line_client import PATIENCE_S, Generation, generate, greedy
from stack_process import StackProcess

from paceline.common.v1.attempt_pb2 import SamplingParams
from paceline.common.v1.slo_pb2 import DeadlineSlo, LatencySlo, Slo
from paceline.router.v1.generation_pb2 import GenerationSpec
from paceline.router.v1.router_pb2 import CancelRequest, GenerateRequest, ListRequestsRequest
from paceline.router.v1.router_pb2_grpc import RouterServiceStub
from paceline.scheduler.v1 import scheduler_pb2 as scheduler
from paceline.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

REQUESTS = 200
AT_ONCE = 24
EMPTY_WITHIN_S = 100.0


def mixed(rng: random.Random, number: int) -> GenerationSpec:
    slo = rng.choice(
        [None, Slo(latency=LatencySlo(ttft_ms=500, tbt_ms=50)), Slo(deadline=DeadlineSlo(e2e_ms=3000))]
    )
    return GenerationSpec(
        request_id=f"leak-{number}",
        text=f"{number} " + "x" * rng.randrange(1, 600),
        max_tokens=rng.randrange(1, 60),
        sampling=SamplingParams(temperature=rng.choice([0, 1]), ignore_eos=rng.random() < 0.5, stop=["zz"]),
        slo=slo,
        streaming=rng.random() < 0.5,
    )


async def one(stack: StackProcess, stub: RouterServiceStub, http: httpx.AsyncClient, number: int) -> str:
    rng = random.Random(number)
    way = rng.choice(["finish", "cancel", "break", "http", "http-break", "too-long"])
    spec = mixed(rng, number)
    if way.startswith("http"):
        body = {"model": "tiny", "prompt": spec.text, "max_tokens": spec.max_tokens, "stream": True}
        async with http.stream("POST", f"http://{stack.gateway}/v1/completions", json=body) as reply:
            assert reply.status_code == 200
            async for _ in reply.aiter_lines():
                if way == "http-break" and rng.random() < 0.3:
                    break
        return way
    if way == "too-long":
        spec.text = "y" * 50_000
        with pytest.raises(grpc.aio.AioRpcError, match="context"):
            await generate(stack.router, spec)
        return way
    seen = Generation()
    if way == "finish":
        await generate(stack.router, spec, seen)
        return way
    call = stub.Generate(GenerateRequest(spec=spec), timeout=PATIENCE_S)
    stop_at = rng.randrange(0, 30)
    async for reply in call:
        seen.take(reply)
        if len(seen.ids) >= stop_at:
            break
    if way == "cancel" and seen.finished is None:
        await stub.Cancel(CancelRequest(request_id=spec.request_id), timeout=PATIENCE_S)
    call.cancel()
    return way


async def test_nothing_leaks(stack: StackProcess) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    ways: list[str] = []
    async with (
        grpc.aio.insecure_channel(stack.router) as channel,
        httpx.AsyncClient(timeout=PATIENCE_S) as http,
    ):
        stub = RouterServiceStub(channel)

        async def gated(number: int) -> None:
            async with gate:
                ways.append(await one(stack, stub, http, number))

        async with asyncio.TaskGroup() as group:
            for number in range(REQUESTS):
                group.create_task(gated(number))
        assert len(ways) == REQUESTS
        assert len(set(ways)) == 6

        async def leftovers() -> dict[str, object]:
            found: dict[str, object] = {}
            live = (await stub.ListRequests(ListRequestsRequest(live_only=True, limit=1000))).requests
            found["router"] = [(record.request_id, record.state) for record in live]
            for address in stack.addresses("scheduler"):
                async with grpc.aio.insecure_channel(address) as inner:
                    table = SchedulerServiceStub(inner)
                    rows = await table.ListRequests(scheduler.ListRequestsRequest())
                    found[f"{address} rows"] = [row.request_id for row in rows.requests]
                    load = (await table.GetLoad(scheduler.GetLoadRequest())).load
                    found[f"{address} kv"] = load.kv_used_tokens
            return {name: value for name, value in found.items() if value}

        # A broken stream detaches for a while before it cancels, so emptiness comes a little later.
        found: dict[str, object] = {}
        try:
            async with asyncio.timeout(EMPTY_WITHIN_S):
                while found := await leftovers():  # noqa: ASYNC110 -- other processes: nothing here to wait on
                    await asyncio.sleep(0.25)
        except TimeoutError:
            raise AssertionError(f"left behind: {found}") from None
        calm = await generate(stack.router, greedy("still well?", 8))
        assert len(calm.ids) == 8
