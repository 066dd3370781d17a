"""What a predictor process carries over gRPC: single questions at a fixed rate, and calls of 64 as fast as it can.

Requests are made before the clock starts, and answers are not read: the figures are the service's, as far as a client
in Python on the same machine lets it. How far that is, is measured too: the same client with a server that does
nothing (`grpc_null_*`). Where that misses a line the machine cannot show the service to meet it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
import psutil
import uvloop

from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline_lab.bench.predictor import BATCH, PredictorPlan, bench_questions
from paceline_lab.bench.predictor_null import null_server
from paceline_predictor.model import LengthQuestion
from paceline_runtime.channel import channel

_METHOD = "/paceline.predictor.v1.PredictorService/PredictLength"
_CALL_S = 10.0
_WARM_OUTCOMES = 300
_NULL_CALLS = 32

T = TypeVar("T")


class PredictorBenchError(RuntimeError):
    """The service did not answer: the figures would mean nothing."""


async def measure_calls(
    plan: PredictorPlan, address: str, pid: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rates in questions/s, times in milliseconds from when a question was due."""
    questions = bench_questions(plan.seed, 1024)
    process = psutil.Process(pid)
    async with channel(address) as connection:
        await _teach(connection, questions, plan.seed)
        call: Any = connection.unary_unary(_METHOD)
        singles = [_request([question]) for question in questions]
        await _open_loop(call, singles, plan.rate_per_s, plan.warmup_s)
        cpu_s = _cpu_s(process)
        rate, latencies_ms, failed = await _open_loop(call, singles, plan.rate_per_s, plan.open_loop_s)
        cores = (_cpu_s(process) - cpu_s) / plan.open_loop_s
        p50, p90, p99 = np.percentile(latencies_ms, (50, 90, 99))
        say(f"{rate:.0f} single questions/s over gRPC, P50 {p50:.2f} ms, P99 {p99:.2f} ms")
        batches = [_request(questions[begin : begin + BATCH]) for begin in range(0, 1024, BATCH)]
        await _closed_loop(call, batches, plan.batched_calls, plan.warmup_s)
        batched = await _closed_loop(call, batches, plan.batched_calls, plan.batched_s)
        say(f"{batched:.0f} questions/s in calls of {BATCH}")
        rss_mb = process.memory_info().rss / (1 << 20)
    return {
        "grpc_qps": round(rate, 1),
        "grpc_failed": failed,
        "grpc_ms_p50": round(float(p50), 3),
        "grpc_ms_p90": round(float(p90), 3),
        "grpc_ms_p99": round(float(p99), 3),
        "grpc_service_cores": round(cores, 3),
        "grpc_batched_qps": round(batched, 1),
        "service_rss_mb": round(rss_mb, 1),
        **await _nothing(plan, singles, say),
    }


async def _nothing(
    plan: PredictorPlan, requests: Sequence[bytes], say: Callable[[str], None]
) -> dict[str, float]:
    """The single questions at the same rate to a server that does nothing, and the most of them that come through."""
    async with null_server() as address, channel(address) as connection:
        call: Any = connection.unary_unary(_METHOD)
        await _open_loop(call, requests, plan.rate_per_s, plan.warmup_s)
        rate, latencies_ms, _ = await _open_loop(call, requests, plan.rate_per_s, plan.open_loop_s / 2)
        most = await _closed_loop(call, requests, _NULL_CALLS, plan.batched_s / 2) / BATCH
    p50, p99 = np.percentile(latencies_ms, (50, 99))
    say(f"a server that does nothing: {rate:.0f}/s, P50 {p50:.2f} ms, P99 {p99:.2f} ms; {most:.0f}/s at most")
    return {
        "grpc_null_qps": round(rate, 1),
        "grpc_null_ms_p50": round(float(p50), 3),
        "grpc_null_ms_p99": round(float(p99), 3),
        "grpc_null_most_qps": round(most, 1),
    }


def run_fast(main: Coroutine[Any, Any, T]) -> T:
    """Run a benchmark on the event loop that the services use."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _open_loop(
    call: Any, requests: Sequence[bytes], rate_per_s: float, seconds: float
) -> tuple[float, list[float], int]:
    """Send at the rate whatever comes back: the rate that was answered, times from when each was due, failed calls.

    Raises PredictorBenchError when none was answered.
    """
    count = round(rate_per_s * seconds)
    latencies_ms: list[float] = []

    async def one(request: bytes, due: float) -> None:
        try:
            await call(request, timeout=_CALL_S)
        except grpc.aio.AioRpcError:
            return
        latencies_ms.append((time.perf_counter() - due) * 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due = began + number / rate_per_s
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(one(requests[number % len(requests)], due))
    if not latencies_ms:
        raise PredictorBenchError(f"none of {count} questions was answered within {_CALL_S:g} s")
    elapsed_s = max(seconds, time.perf_counter() - began)
    return len(latencies_ms) / elapsed_s, latencies_ms, count - len(latencies_ms)


async def _closed_loop(call: Any, requests: Sequence[bytes], at_once: int, seconds: float) -> float:
    """Questions/s with so many calls under way."""
    ends = time.perf_counter() + seconds
    calls = 0

    async def caller(first: int) -> None:
        nonlocal calls
        number = first
        while time.perf_counter() < ends:
            await call(requests[number % len(requests)], timeout=_CALL_S)
            number += at_once
            calls += 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(at_once):
            group.create_task(caller(first))
    return calls * BATCH / (time.perf_counter() - began)


async def _teach(connection: grpc.aio.Channel, questions: Sequence[LengthQuestion], seed: int) -> None:
    lengths = np.random.default_rng(seed).lognormal(5.2, 0.8, _WARM_OUTCOMES)

    async def outcomes() -> AsyncIterator[predictor_pb2.ObserveRequest]:
        rows = [
            predictor_pb2.LengthOutcome(query=_query(question), output_tokens=max(1, int(length)))
            for question, length in zip(questions, lengths, strict=False)
        ]
        yield predictor_pb2.ObserveRequest(lengths=rows)

    stub: Any = predictor_pb2_grpc.PredictorServiceStub(connection)
    await stub.Observe(outcomes())


def _request(questions: Sequence[LengthQuestion]) -> bytes:
    message = predictor_pb2.PredictLengthRequest(queries=[_query(question) for question in questions])
    return message.SerializeToString()


def _query(question: LengthQuestion) -> predictor_pb2.LengthQuery:
    return predictor_pb2.LengthQuery(
        model=question.model,
        app=question.app,
        prompt_head=question.prompt_head,
        prompt_tail=question.prompt_tail,
        prompt_tokens=question.prompt_tokens,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        turn_index=question.turn_index,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
