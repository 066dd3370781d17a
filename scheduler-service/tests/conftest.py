"""A scheduler over a real executor service with a simulated engine, and a router's end of a session."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_runtime.channel import channel
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

TIMEOUT_S = 200.0
"""Longest wait for what takes milliseconds: a machine that is busy with others gives little CPU time."""
ENDLESS = 100_000
"""Tokens of a request that must still run when something happens, however long the test is kept waiting: a minute."""


class RouterEnd:
    """A router's end of one session: keeps what it is told, by attempt."""

    def __init__(self, address: str, router_id: str = "router-a", fencing_token: int = 1) -> None:
        self.router_id = router_id
        self.fencing_token = fencing_token
        self._channel = channel(address)
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self.acks: list[scheduler_pb2.HelloAck] = []
        self.accepted: dict[int, attempt_pb2.AttemptAccepted] = {}
        self.ids: dict[int, list[int]] = {}
        self.ended: dict[int, attempt_pb2.AttemptEnded] = {}
        self.tickets: list[scheduler_pb2.MoveTicket] = []
        self.lost: list[scheduler_pb2.EngineLost] = []
        self.loads: list[scheduler_pb2.Load] = []
        self.order: list[str] = []
        self.error: Exception | None = None

    async def hello(self, *, adopt: dict[str, int] | None = None) -> scheduler_pb2.HelloAck:
        """Open the session and wait for the answer."""
        self._call = self.stub.Session()
        hello = scheduler_pb2.Hello(router_id=self.router_id, fencing_token=self.fencing_token)
        for router_id, token in (adopt or {}).items():
            hello.adopt.add(router_id=router_id, fencing_token=token)
        seen = len(self.acks)
        await self._call.write(scheduler_pb2.SessionRequest(hello=hello))
        self._reader = asyncio.create_task(self._read())
        await self.until(lambda: self.error is not None or (len(self.acks) > seen and not self.acks[-1].more))
        if self.error is not None:
            raise self.error
        return self.acks[-1]

    async def send(self, **fields: Any) -> None:
        """Send one batch of commands."""
        commands = scheduler_pb2.Commands(**fields)
        await self._call.write(scheduler_pb2.SessionRequest(commands=commands))

    async def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Wait until what was told makes `condition` true."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def run_all(self, *submits: scheduler_pb2.Submit) -> None:
        """Submit and wait for every end."""
        await self.send(submits=submits)
        keys = {s.spec.attempt_key for s in submits}
        await self.until(lambda: keys <= self.ended.keys())

    async def hang_up(self) -> None:
        """Break the stream."""
        if self._call is not None:
            self._call.cancel()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def close(self) -> None:
        await self.hang_up()
        await self._channel.close()

    async def _read(self) -> None:
        try:
            async for message in self._call:
                async with self._changed:
                    self._take(message)
                    self._changed.notify_all()
        except (Exception, asyncio.CancelledError) as error:  # kept for the test to look at
            self.error = error if isinstance(error, Exception) else None
        finally:
            async with self._changed:
                self._changed.notify_all()

    def _take(self, message: scheduler_pb2.SessionResponse) -> None:
        if message.HasField("hello_ack"):
            if self.acks and self.acks[-1].more:
                self.acks[-1].live.extend(message.hello_ack.live)
                self.acks[-1].more = message.hello_ack.more
            else:
                self.acks.append(message.hello_ack)
            self.order.append("hello_ack")
            return
        update = message.update
        for accepted in update.accepted:
            self.accepted[accepted.attempt_key] = accepted
        for batch in update.tokens:
            payload = attempt_pb2.TokenPayload.FromString(batch.payload)
            ids = np.frombuffer(payload.token_ids, dtype="<i4").tolist()
            at = 0
            for key, first, count in zip(batch.attempt_keys, batch.first_indices, batch.counts, strict=True):
                mine = self.ids.setdefault(key, [])
                piece = ids[at : at + count]
                at += count
                if first > len(mine):
                    self.order.append(f"gap {key}")
                    continue
                for index, token in enumerate(piece, first):
                    if index < len(mine):
                        assert mine[index] == token, "published again with another id"
                    else:
                        mine.append(token)
        if update.HasField("engine_lost"):
            self.lost.append(update.engine_lost)
            self.order.append("engine_lost")
        for ended in update.ended:
            self.ended[ended.attempt_key] = ended
            self.order.append(f"ended {ended.attempt_key}")
        self.tickets.extend(update.tickets)
        if update.HasField("load"):
            self.loads.append(update.load)


def submit(key: int, *, tokens: int = 16, prompt: int = 32, slo: slo_pb2.Slo | None = None, **fields: Any):
    """A request of `prompt` ids that answers exactly `tokens` tokens."""
    ids = (np.arange(prompt, dtype="<i4") + key) % 500 + 3
    spec = attempt_pb2.AttemptSpec(
        attempt_key=key,
        request_id=f"request-{key}",
        token_ids=ids.tobytes(),
        max_tokens=tokens,
        sampling=attempt_pb2.SamplingParams(seed=key, ignore_eos=True),
    )
    slo = slo or slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=20_000))
    return scheduler_pb2.Submit(spec=spec, slo=slo, context=f"context-{key}".encode(), **fields)


class Bench:
    """Starts executors, schedulers and routers, and ends them with the test."""

    submit = staticmethod(submit)
    ENDLESS = ENDLESS

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def executor(
        self, listen: str = "127.0.0.1:0", *, scale: float = 0.05, **fields: Any
    ) -> ExecutorApp:
        """A simulated engine behind the real service; steps take a few hundred microseconds."""
        config = ExecutorConfig(
            listen=listen,
            engine_id="engine-1",
            backend="simulated",
            simulated={"time_scale": scale},
            server={"drain_grace_s": 0.0},
            **{"context_tokens": 2 * ENDLESS, "orphan_ttl_s": 600.0, **fields},
        )
        app = ExecutorApp(ExecutorServiceConfig(executor=config))
        await app.__aenter__()
        self._stack.push_async_callback(app.__aexit__, None, None, None)
        return app

    async def crash(self, app: ExecutorApp) -> None:
        """End an executor without a word to its scheduler."""
        await app.server.grpc.stop(0)
        await app.__aexit__(None, None, None)

    async def scheduler(self, executor: str, **fields: Any) -> SchedulerApp:
        """A scheduler that is attached to `executor`."""
        patient = {"engine_lost_after_s": 60.0, "attach_timeout_s": 60.0, "router_grace_s": 600.0}
        fields = {"listen": "127.0.0.1:0", "load_interval_ms": 20.0, **patient} | fields
        app = SchedulerApp(SchedulerConfig(executor=executor, **fields))
        await app.start()
        self._stack.push_async_callback(stop, app)
        return app

    async def attached(self, app: SchedulerApp, *, attached: bool = True) -> None:
        """Wait until the engine is there, or gone."""
        async with asyncio.timeout(TIMEOUT_S):
            while app.loop.state.engine.attached is not attached:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.005)

    async def router(self, app: SchedulerApp, router_id: str = "router-a", token: int = 1) -> RouterEnd:
        """A router that has said hello."""
        await self.attached(app)
        end = self.router_end(app, router_id, token)
        await end.hello()
        return end

    def router_end(self, app: SchedulerApp, router_id: str = "router-a", token: int = 1) -> RouterEnd:
        """A router that has not said anything yet."""
        end = RouterEnd(app.address, router_id, token)
        self._stack.push_async_callback(end.close)
        return end

    async def pair(
        self, context_tokens: int = 2 * ENDLESS, **fields: Any
    ) -> tuple[ExecutorApp, SchedulerApp, RouterEnd]:
        """One of each, connected."""
        executor = await self.executor(context_tokens=context_tokens)
        scheduler = await self.scheduler(executor.address, **fields)
        return executor, scheduler, await self.router(scheduler)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition that nobody announces is true."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def stop(app: SchedulerApp) -> None:
    """Stop unless it is stopped already."""
    if app.running:
        await app.stop(0.0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(stack)
