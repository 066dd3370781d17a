"""How many tokens a router relays, and what a live request costs it in memory.

One multiplexed session keeps a fixed number of requests live: for each that ends another one is sent. Tokens are
counted as they arrive at the client.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import psutil

from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_runtime.channel import channel

_SUBMITS_PER_MESSAGE = 64
_UNACCEPTED_LIMIT = 256
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """What to measure. `batch` requests run on each engine; `memory_requests` are live at once in the memory phase."""

    engines: int = 64
    batch: int = 16
    prompt_words: int = 64
    output_tokens: int = 512
    warmup_s: float = 4.0
    measure_s: float = 12.0
    memory_requests: int = 8192


class RelayError(RuntimeError):
    """The router refused or lost requests: the figures would mean nothing."""


class RelayClient:
    """Keeps a number of requests live on one session and counts what comes back."""

    def __init__(self, router: str, plan: RelayPlan) -> None:
        self._router = router
        self._plan = plan
        self._commands: asyncio.Queue[router_pb2.SessionRequest] = asyncio.Queue(4096)
        self._next = 1
        self._submitted = 0
        self._prompt = " ".join(f"word{number}" for number in range(plan.prompt_words))
        self.live = 0
        self.accepted = 0
        self.tokens = 0
        self.messages = 0
        self.rows = 0
        self.ended = 0
        self.failure = ""

    async def raise_to(self, target: int) -> None:
        """Have `target` requests live from now on; returns once all were accepted. Raises RelayError.

        Requests are handed in a few hundred at a time: a burst of thousands measures admission, not relaying.
        """
        missing = target - self.live
        deadline = time.monotonic() + _START_TIMEOUT_S
        while missing > 0 or self.accepted < self._submitted:
            if self.failure or time.monotonic() > deadline:
                raise RelayError(
                    self.failure or f"only {self.accepted} of {self._submitted} requests were accepted"
                )
            if missing > 0 and self._submitted - self.accepted < _UNACCEPTED_LIMIT:
                count = min(missing, _SUBMITS_PER_MESSAGE)
                await self._submit(count)
                missing -= count
            else:
                await asyncio.sleep(0.01)

    async def _submit(self, count: int) -> None:
        batch = router_pb2.SessionBatch()
        for _ in range(count):
            spec = generation_pb2.GenerationSpec(
                text=f"{self._next} {self._prompt}",
                max_tokens=self._plan.output_tokens,
                streaming=True,
                durability=generation_pb2.DURABILITY_UNSPECIFIED,
            )
            spec.sampling.ignore_eos = True
            spec.slo.best_effort.SetInParent()
            batch.submits.append(router_pb2.SessionSubmit(stream_id=self._next, spec=spec))
            self._next += 1
        self.live += count
        self._submitted += count
        await self._commands.put(router_pb2.SessionRequest(batch=batch))

    async def run(self) -> None:
        """Read until cancelled."""
        async with channel(self._router) as connection:
            session = router_pb2_grpc.RouterServiceStub(connection).Session(self._requests())
            try:
                async for message in session:
                    await self._take(message)
                self.failure = self.failure or "the router closed the session"
            except grpc.aio.AioRpcError as error:
                self.failure = f"{error.code().name}: {error.details()}"
            finally:
                session.cancel()

    async def _take(self, message: router_pb2.SessionResponse) -> None:
        self.messages += 1
        self.accepted += len(message.accepted)
        if message.HasField("tokens"):
            counts = message.tokens.counts
            self.rows += len(counts)
            self.tokens += sum(counts)
        if message.finished:
            for row in message.finished:
                if row.finished.HasField("failure"):
                    self.failure = f"{row.finished.failure.reason}: {row.finished.failure.message}"
            self.ended += len(message.finished)
            self.live -= len(message.finished)
            if not self.failure:
                await self._submit(len(message.finished))

    async def _requests(self) -> AsyncIterator[router_pb2.SessionRequest]:
        yield router_pb2.SessionRequest(open=router_pb2.SessionOpen(client_id="paceline-bench"))
        while True:
            yield await self._commands.get()


async def measure_relay(
    plan: RelayPlan, router: str, pids: dict[str, int], say: Callable[[str], None]
) -> dict[str, Any]:
    """Throughput with full engines, then memory with many more requests. `pids`: process -> pid, with `router`."""
    client = RelayClient(router, plan)
    reader = asyncio.create_task(client.run(), name="relay client")
    processes = {name: psutil.Process(pid) for name, pid in pids.items()} | {"client": psutil.Process()}
    try:
        base_live = plan.engines * plan.batch
        await client.raise_to(base_live)
        await asyncio.sleep(plan.warmup_s)
        throughput = await _throughput(client, processes, plan.measure_s)
        say(f"{throughput['tokens_per_s']:.0f} tokens/s with {base_live} live requests")
        base_rss = processes["router"].memory_info().rss
        await client.raise_to(plan.memory_requests)
        await asyncio.sleep(plan.warmup_s)
        rss = processes["router"].memory_info().rss
        live = client.live
        per_request = (rss - base_rss) / (live - base_live)
        say(f"{per_request:.0f} bytes a live request, {live} of them live")
        if client.failure:
            raise RelayError(client.failure)
    finally:
        reader.cancel()
        await asyncio.wait([reader])
    return {
        "tokens_per_s": round(throughput.pop("tokens_per_s"), 1),
        "router_bytes_per_request": round(per_request),
        **throughput,
        "router_rss_bytes": {"base": base_rss, "full": rss, "base_live": base_live, "full_live": live},
        "plan": asdict(plan),
    }


async def _throughput(
    client: RelayClient, processes: dict[str, psutil.Process], seconds: float
) -> dict[str, Any]:
    before = {name: _cpu_s(process) for name, process in processes.items()}
    tokens, messages, rows, began = client.tokens, client.messages, client.rows, time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - began
    got = client.tokens - tokens
    if client.failure:
        raise RelayError(client.failure)
    if got == 0:
        raise RelayError("no token arrived while it was measured")
    return {
        "tokens_per_s": got / elapsed,
        "tokens_per_message": got / max(1, client.messages - messages),
        "tokens_per_row": got / max(1, client.rows - rows),
        "cpu_cores": {
            name: round((_cpu_s(process) - before[name]) / elapsed, 3) for name, process in processes.items()
        },
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
