"""What a router decides over gRPC: `RouteStream` in messages of 32 specs, and single `Route` calls at a fixed rate.

Requests are made before the clock starts. In the stream each message brings the outcomes of one that was answered
earlier, so that the number of open decisions stays the same. Times are from when a message or call was due: a router
that falls behind shows it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
import psutil

from paceline.common.v1 import estimate_pb2, slo_pb2
from paceline.router.v1 import router_pb2
from paceline_core import lengths
from paceline_runtime.channel import channel

_STREAM: Final = "/paceline.router.v1.RouterService/RouteStream"
_UNARY: Final = "/paceline.router.v1.RouterService/Route"
_CALL_S: Final = 60.0


class RouterBenchError(RuntimeError):
    """The router did not answer: the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class CallsPlan:
    """What is measured of the service."""

    stream_rate_per_s: float = 10_500.0
    """Decisions asked for in a stream, a little over the goal."""
    unary_rate_per_s: float = 500.0
    seconds: float = 5.0
    """Of each of the three parts."""
    warmup_s: float = 1.0
    message_specs: int = 32
    open_decisions: int = 4096
    at_once: int = 16
    """Messages under way when the stream is driven as fast as it answers."""
    seed: int = 1


async def measure_calls(
    plan: CallsPlan, address: str, pid: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rates in decisions/s, times in milliseconds. Raises RouterBenchError when the router does not decide."""
    process = psutil.Process(pid)
    async with channel(address) as connection:
        call: Any = connection.unary_unary(_UNARY)
        singles = _singles(plan)
        await _unary(call, singles, plan.unary_rate_per_s, plan.warmup_s)
        unary_ms = await _unary(call, singles, plan.unary_rate_per_s, plan.seconds)
        unary_p50, unary_p99 = np.percentile(unary_ms, (50, 99))
        say(f"Route at {plan.unary_rate_per_s:.0f}/s: P50 {unary_p50:.2f} ms, P99 {unary_p99:.2f} ms")
        cpu_s = _cpu_s(process)
        per_s, stream_ms = await _stream(connection, plan, paced=True)
        cores = (_cpu_s(process) - cpu_s) / (plan.seconds + plan.warmup_s)
        p50, p99 = np.percentile(stream_ms, (50, 99))
        say(
            f"RouteStream, {plan.stream_rate_per_s:.0f}/s offered: {per_s:.0f}/s, P50 {p50:.2f} ms, P99 {p99:.2f} ms"
        )
        most, _ = await _stream(connection, plan, paced=False)
        say(f"RouteStream, as fast as it answers: {most:.0f}/s")
        rss_mb = process.memory_info().rss / (1 << 20)
    return {
        "stream_decisions_per_s": round(per_s, 1),
        "stream_ms_p50": round(float(p50), 3),
        "stream_ms_p99": round(float(p99), 3),
        "stream_most_per_s": round(most, 1),
        "stream_router_cores": round(cores, 3),
        "unary_ms_p50": round(float(unary_p50), 3),
        "unary_ms_p99": round(float(unary_p99), 3),
        "router_rss_mb": round(rss_mb, 1),
    }


async def _unary(call: Any, requests: Sequence[bytes], rate_per_s: float, seconds: float) -> list[float]:
    """Milliseconds from when each call was due, at the rate whatever comes back."""
    took_ms: list[float] = []
    failed: list[grpc.aio.AioRpcError] = []

    async def one(request: bytes, due: float) -> None:
        try:
            await call(request, timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            failed.append(error)
        took_ms.append((time.perf_counter() - due) * 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(max(round(rate_per_s * seconds), 1)):
            due = began + number / rate_per_s
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(one(requests[number % len(requests)], due))
    if failed:
        raise RouterBenchError(f"Route: {failed[0].code().name}: {failed[0].details()}")
    return took_ms


async def _stream(connection: grpc.aio.Channel, plan: CallsPlan, *, paced: bool) -> tuple[float, list[float]]:
    """Decisions/s after the warm-up, and milliseconds from when each message was due until its last decision came.

    `paced`: at the plan's rate; else with `at_once` messages under way.
    """
    ring = _messages(plan)
    size = plan.message_specs
    under_way = asyncio.Semaphore(plan.at_once)
    due_at: list[float] = []
    began = time.perf_counter()
    measure_from = began + plan.warmup_s
    ends = measure_from + plan.seconds

    async def requests() -> AsyncIterator[bytes]:
        while True:
            due = time.perf_counter()
            if paced:
                due = began + len(due_at) * size / plan.stream_rate_per_s
                await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            else:
                await under_way.acquire()
                due = time.perf_counter()
            if due >= ends:
                return
            due_at.append(due)
            yield ring[(len(due_at) - 1) % len(ring)]

    method: Any = connection.stream_stream(_STREAM)
    decided = answered = measured = 0
    took_ms: list[float] = []
    last = measure_from
    try:
        async with asyncio.timeout(_CALL_S + plan.seconds + plan.warmup_s):
            async for raw in method(requests()):
                now = time.perf_counter()
                decisions = router_pb2.RouteStreamResponse.FromString(raw).decisions
                refused = next((d.failure for d in decisions if not d.engine_id), None)
                if refused is not None:
                    raise RouterBenchError(f"a decision was refused: {refused.reason}: {refused.message}")
                decided += len(decisions)
                if now >= measure_from:
                    measured += len(decisions)
                    last = now
                while (answered + 1) * size <= decided:
                    if due_at[answered] >= measure_from:
                        took_ms.append((now - due_at[answered]) * 1000)
                    answered += 1
                    if not paced:
                        under_way.release()
    except grpc.aio.AioRpcError as error:
        raise RouterBenchError(f"RouteStream: {error.code().name}: {error.details()}") from None
    if not took_ms:
        raise RouterBenchError("RouteStream made no decision in time")
    return measured / max(last - measure_from, plan.seconds), took_ms


def _messages(plan: CallsPlan) -> list[bytes]:
    """A ring of messages: each asks for specs, and tells the outcomes of the one half the ring before it."""
    size = plan.message_specs
    count = 2 * max(plan.open_decisions // size, 2 * plan.at_once)
    rng = np.random.default_rng(plan.seed)
    specs = [[_spec(rng, f"{m}.{i}") for i in range(size)] for m in range(count)]
    ring = []
    for m in range(count):
        outcomes = [
            router_pb2.RouteOutcome(
                request_id=spec.request_id,
                output_tokens=int(rng.integers(20, 800)),
                ttft_ms=80.0,
                ttlt_ms=4000.0,
            )
            for spec in specs[(m + count // 2) % count]
        ]
        message = router_pb2.RouteStreamRequest(specs=specs[m], outcomes=outcomes)
        ring.append(message.SerializeToString())
    return ring


def _singles(plan: CallsPlan) -> list[bytes]:
    rng = np.random.default_rng(plan.seed + 1)
    return [router_pb2.RouteRequest(spec=_spec(rng, f"u{i}")).SerializeToString() for i in range(256)]


def _spec(rng: np.random.Generator, request_id: str) -> router_pb2.RouteSpec:
    centre = rng.uniform(np.log(50), np.log(1500))
    mass = np.exp(-(((np.log(lengths.UPPER) - centre) / 0.7) ** 2) / 2)
    if rng.integers(3):
        slo = slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=float(rng.uniform(2_000, 60_000))))
    else:
        slo = slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=2_000.0, tbt_ms=100.0))
    return router_pb2.RouteSpec(
        request_id=request_id,
        prompt_tokens=int(rng.integers(50, 2_000)),
        max_tokens=4_096,
        slo=slo,
        estimate=estimate_pb2.LengthEstimate(probabilities=mass / mass.sum()),
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
